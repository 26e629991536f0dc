"""The numbers behind every picture, as CSV: one row a boundary, a layer, a trial or a token; units in the headers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, get_args

from halfv_accel import Profile
from halfv_accel.evidence import Curve, Trial
from halfv_probe.choice.choose import pareto
from halfv_probe.trials.outcomes import LABELS_COUNT_FROM

BY_BOUNDARY = {  # field of the evidence: column
    "full_entropy_low": "full_entropy_low_nats",
    "full_entropy_high": "full_entropy_high_nats",
    "effective_rank": "effective_rank",
    "participation_ratio": "participation_ratio",
    "curvature": "curvature",
    "turning": "turning",
}
BY_LAYER = {
    "layer_kl": "layer_kl_nats",
    "suffix_kl": "suffix_kl_nats",
    "suffix_agreement": "suffix_agreement_share",
}


@dataclass(frozen=True)
class Table:
    """Columns with names and rows of values; None is an empty cell.

    Parameters
    ----------
    name : str
        Stem of the file, e.g. "entropy".
    header : tuple of str
    rows : tuple of tuple
        As long as the header each.
    """

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def csv(self) -> str:
        """Comma-separated, one header line, numbers in full precision."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(self.rows)
        return text.getvalue()


def entropy_table(profile: Profile) -> Table:
    """Every curve of a profile: row l is the input of decoder layer l and what layer l does; the last is the output."""
    evidence = profile.evidence
    columns: dict[str, Sequence[Any]] = {"boundary": range(profile.model.num_layers + 1)}
    for group in get_args(Curve):
        columns[f"entropy_{group}_nats"] = evidence.entropy[group]
        columns[f"entropy_{group}_std_nats"] = evidence.entropy_std.get(group, [])
        columns[f"tail_mass_{group}_share"] = evidence.tail_mass.get(group, [])
    for field, column in (BY_BOUNDARY | BY_LAYER).items():
        columns[column] = getattr(evidence, field)
    return _of_columns("entropy", columns)


def redundancy_table(profile: Profile) -> Table:
    """What it costs when visual tokens are no longer updated: one row a decoder layer."""
    columns: dict[str, Sequence[Any]] = {"layer": range(profile.model.num_layers)}
    columns |= {column: getattr(profile.evidence, field) for field, column in BY_LAYER.items()}
    return _of_columns("redundancy", columns)


def spectrum_table(profile: Profile) -> Table:
    """Share of every eigenvalue in the sum of all: one row a boundary."""
    spectrum = profile.evidence.spectrum
    longest = max(map(len, spectrum), default=0)
    header = ("boundary", *(f"eigenvalue_{i}_share" for i in range(1, longest + 1)))
    rows = ((layer, *row, *[None] * (longest - len(row))) for layer, row in enumerate(spectrum))
    return Table("spectrum", header, tuple(rows))


def utility_table(profile: Profile) -> Table:
    """Marginal utility: one row a layer and a retention."""
    fields = ("layer", "retention", "drop", "kl", "flops_saved", "latency_saved", "utility")
    header = (
        "layer",
        "retention_share",
        "drop_share",
        "kl_nats",
        "flops_saved_share",
        "latency_saved_share",
        "utility",
    )
    rows = (tuple(getattr(cell, field) for field in fields) for cell in profile.evidence.utility)
    return Table("utility", header, tuple(rows))


def trials_table(profile: Profile) -> Table:
    """Plans that were run: one row a plan, with marks for the chosen one and the Pareto front."""
    plan = ("ivr_layer", "ivr_retention", "anchor_ratio", "ssr_mode", "ssr_layer", "ssr_retention")
    header = (*plan, "flops_share", "agreement_share", "drop_share", "kl_nats", "samples", "on_pareto_front", "chosen")
    trials = profile.evidence.trials
    front, chosen = pareto_front(trials), chosen_trial(profile)
    rows = (
        (
            *(getattr(trial, field) for field in (*plan, "flops", "agreement", "drop", "kl", "samples")),
            int(index in front),
            int(index == chosen),
        )
        for index, trial in enumerate(trials)
    )
    return Table("trials", header, tuple(rows))


def votes_table(profile: Profile) -> Table:
    """Bootstrap: one row a choice and a value that won at least once."""
    votes = profile.evidence.votes
    rows = ((choice, value, share) for choice, shares in votes.items() for value, share in in_order(shares))
    return Table("votes", ("choice", "value", "share_of_resamples"), tuple(rows))


def in_order(shares: dict[str, float]) -> list[tuple[str, float]]:
    """Votes by layer where the values are numbers, else by name."""
    return sorted(shares.items(), key=lambda item: (0, int(item[0]), "") if item[0].isdigit() else (1, 0, item[0]))


def pareto_front(trials: Sequence[Trial]) -> list[int]:
    """Indices of the trials that no other beats in FLOPs and drop; the cheapest first."""
    return pareto([trial.flops for trial in trials], [trial.drop for trial in trials])


def by_answers(profile: Profile) -> bool:
    """Does `drop` count lost right answers? Else changed replies: answers are not known, or mostly missed."""
    accuracy = profile.evidence.untouched_accuracy
    return accuracy is not None and accuracy >= LABELS_COUNT_FROM


def chosen_trial(profile: Profile) -> int | None:
    """Index of the trial whose plan is the profile's own, or None if that one is not among them."""
    fidelity, plan = profile.calibration.fidelity, profile.plan()
    matches = (index for index, trial in enumerate(profile.evidence.trials) if trial.plan(fidelity) == plan)
    return next(matches, None)


def _of_columns(name: str, columns: dict[str, Sequence[Any]]) -> Table:
    """Columns of different lengths side by side; those that were not measured are left out."""
    measured = {column: values for column, values in columns.items() if len(values)}
    rows: Iterable[tuple[Any, ...]] = zip_longest(*measured.values())
    return Table(name, tuple(measured), tuple(rows))
