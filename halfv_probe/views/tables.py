"""The numbers of a profile as pandas tables: one row a boundary, a layer, a trial or a condition; units in the headers.

What was not measured is missing: a whole column is left out, a single value is NaN or <NA>. Integers stay integers.
Every picture writes such a table beside it, and `read_csv(..., float_precision="round_trip")` gives back its floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, count
from statistics import fmean, pstdev
from typing import Any, Literal, get_args

import pandas as pd

from halfv_accel import HalfVError, Profile
from halfv_accel.evidence import Curve, Trial
from halfv_probe.choice.choose import pareto
from halfv_probe.trials.outcomes import LABELS_COUNT_FROM

Scale = Literal["nats", "zscore"]

BY_BOUNDARY = {  # field of the evidence: column
    "full_entropy_low": "full_entropy_low_nats",
    "full_entropy_high": "full_entropy_high_nats",
    "effective_rank": "effective_rank",
    "participation_ratio": "participation_ratio",
    "curvature": "curvature",
    "turning": "turning",
    "maturity": "maturity_share",
}
BY_LAYER = {
    "layer_kl": "layer_kl_nats",
    "suffix_kl": "suffix_kl_nats",
    "suffix_agreement": "suffix_agreement_share",
    "attention_to_visual": "attention_to_visual_share",
}
# Field of a document: its column, and the type that the column has even where nothing, or not all, was measured.
Columns = Mapping[str, tuple[str, str]]
PLAN: Columns = {
    "ivr_layer": ("ivr_layer", "int64"),
    "ivr_retention": ("ivr_retention", "float64"),
    "anchor_ratio": ("anchor_ratio", "float64"),
    "ssr_mode": ("ssr_mode", "string"),
    "ssr_layer": ("ssr_layer", "Int64"),
    "ssr_retention": ("ssr_retention", "float64"),
}
SCORED_BY: Columns = {
    "ivr_scored_by": ("ivr_scored_by", "string"),
    "ssr_scored_by": ("ssr_scored_by", "string"),
}
OUTCOME: Columns = {
    "flops": ("flops_share", "float64"),
    "agreement": ("agreement_share", "float64"),
    "drop": ("drop_share", "float64"),
    "kl": ("kl_nats", "float64"),
    "samples": ("samples", "int64"),
}
UTILITY: Columns = {
    "layer": ("layer", "int64"),
    "retention": ("retention_share", "float64"),
    "drop": ("drop_share", "float64"),
    "kl": ("kl_nats", "float64"),
    "flops_saved": ("flops_saved_share", "float64"),
    "latency_saved": ("latency_saved_share", "float64"),
    "utility": ("utility", "float64"),
}
BY_STAGE: Columns = {
    "stage": ("stage", "string"),
    "saved": ("saved_share", "float64"),
    "utility": ("utility", "float64"),
}
ISOLATED: Columns = {
    "mode": ("mode", "string"),
    "layer": ("layer", "int64"),
    "scored_by": ("scored_by", "string"),
    **OUTCOME,
}
HELD: Columns = {
    "about": ("about", "string"),
    "condition": ("condition", "string"),
    "stable": ("three_stages", "bool"),
    "ivr": ("ivr_layer_by_curves", "int64"),
    "ssr": ("ssr_layer_by_curves", "int64"),
    "mode": ("ssr_mode", "string"),
    "plan": ("plan", "string"),
}


def frame(profile: Profile, name: str) -> pd.DataFrame:
    """One table of a profile.

    Parameters
    ----------
    profile : Profile
        Of any 1.x version; what it does not hold gives missing columns, or a table without rows.
    name : str
        A key of `FRAMES`: "entropy", "redundancy", "trials" and so on.

    Returns
    -------
    DataFrame
        With a plain index; the columns' names hold their units (nats, or shares from 0 to 1).

    Raises
    ------
    HalfVError
        If there is no table of that name.
    """
    if name not in FRAMES:
        raise HalfVError(f"no table is called {name!r}: choose one of {', '.join(FRAMES)}")
    return FRAMES[name](profile)


def csv(table: pd.DataFrame) -> str:
    """Comma-separated, one header line, numbers in full precision, an empty cell for what is missing."""
    return table.to_csv(index=False, lineterminator="\n")


def entropy(profile: Profile) -> pd.DataFrame:
    """Every curve: row l is the input of decoder layer l and what layer l does; the last row is the output."""
    evidence, null = profile.evidence, profile.evidence.null
    columns: dict[str, Sequence[Any]] = {"boundary": range(profile.model.num_layers + 1)}
    for group in get_args(Curve):
        columns[f"entropy_{group}_nats"] = curves_of(profile)[group]
        columns[f"entropy_{group}_std_nats"] = evidence.entropy_std.get(group, [])
        columns[f"tail_mass_{group}_share"] = evidence.tail_mass.get(group, [])
    for field, column in (BY_BOUNDARY | BY_LAYER).items():
        columns[column] = getattr(evidence, field)
    if null is not None:
        columns |= {f"random_weights_entropy_{group}_nats": curve for group, curve in null.entropy.items()}
        columns["random_weights_layer_kl_nats"] = null.layer_kl
    return _side_by_side(columns)


def entropy_by_k(profile: Profile) -> pd.DataFrame:
    """The curves for each number of eigenvalues that was tried: one row a k and a boundary."""
    parts = []
    for k, curves in sorted(curves_by_k(profile).items()):
        columns: dict[str, Sequence[Any]] = {"k": [k] * (profile.model.num_layers + 1)}
        columns["boundary"] = range(profile.model.num_layers + 1)
        for group, (mean, std) in curves.items():
            columns |= {f"entropy_{group}_nats": mean, f"entropy_{group}_std_nats": std}
        parts.append(_side_by_side(columns))
    return pd.concat(parts, ignore_index=True)


def curves_by_k(profile: Profile) -> dict[int, dict[Curve, tuple[list[float], list[float]]]]:
    """By k, the profile's own included: mean and standard deviation (nats; empty where unknown) of every curve."""
    evidence = profile.evidence
    own = {group: (curve, evidence.entropy_std.get(group, [])) for group, curve in curves_of(profile).items()}
    others = {
        int(k): {group: (spread.mean, spread.std) for group, spread in curves.items()}
        for k, curves in evidence.entropy_by_k.items()
    }
    return {**others, evidence.k: own}


def curves_of(profile: Profile) -> dict[Curve, list[float]]:
    """Entropy before each layer and after the last, nats.

    Raises
    ------
    HalfVError
        If the profile is of another method's calibration, which measures none.
    """
    if not profile.evidence.entropy:
        _ = profile.halfv  # says so
    return profile.evidence.entropy


def models(profiles: Sequence[Profile]) -> pd.DataFrame:
    """Visual entropy and layer KL of several models over depth: one row a model and a boundary (Figure 2a and 2d)."""
    parts = []
    for name, profile in zip(labels(profiles), profiles, strict=True):
        curve, last = curves_of(profile)["visual"], profile.model.num_layers
        columns: dict[str, Sequence[Any]] = {
            "model": [name] * (last + 1),
            "boundary": range(last + 1),
            "depth_percent": [100 * boundary / last for boundary in range(last + 1)],
            "entropy_visual_nats": curve,
            "entropy_visual_zscore": zscores(curve),
            "layer_kl_nats": profile.evidence.layer_kl,
        }
        parts.append(_side_by_side(columns))
    return pd.concat(parts, ignore_index=True)


def labels(profiles: Sequence[Profile]) -> list[str]:
    """A name for each, and no name twice: the model's, with a number where models have the same."""
    found: list[str] = []
    for profile in profiles:
        name = profile.model.id
        names = chain([name], (f"{name} ({number})" for number in count(2)))
        found.append(next(name for name in names if name not in found))
    return found


def zscores(curve: Sequence[float]) -> list[float]:
    """A curve less its mean, in its standard deviations; a flat one is 0 everywhere.

    >>> zscores([1.0, 3.0]), zscores([2.0, 2.0])
    ([-1.0, 1.0], [0.0, 0.0])
    """
    centre, unit = centre_and_unit(curve, "zscore")
    return [(value - centre) / unit for value in curve]


def centre_and_unit(curve: Sequence[float], scale: Scale) -> tuple[float, float]:
    """What to take from each value, and what to divide by: 0 and 1 for nats, mean and deviation for z-scores."""
    if scale == "nats":
        return 0.0, 1.0
    return fmean(curve), pstdev(curve) or 1.0


def redundancy(profile: Profile) -> pd.DataFrame:
    """What it costs when visual tokens are no longer updated: one row a decoder layer."""
    columns: dict[str, Sequence[Any]] = {"layer": range(profile.model.num_layers)}
    columns |= {column: getattr(profile.evidence, field) for field, column in BY_LAYER.items()}
    if profile.evidence.null is not None:
        columns["random_weights_layer_kl_nats"] = profile.evidence.null.layer_kl
    return _side_by_side(columns)


def spectrum(profile: Profile) -> pd.DataFrame:
    """Share of every eigenvalue in the sum of all: one row a boundary."""
    shares = pd.DataFrame(profile.evidence.spectrum, dtype="float64")
    shares.columns = pd.Index([f"eigenvalue_{place + 1}_share" for place in shares.columns])
    shares.insert(0, "boundary", range(len(shares)))
    return shares


def utility(profile: Profile) -> pd.DataFrame:
    """Marginal utility: one row a layer and a retention."""
    return _of_documents(profile.evidence.utility, UTILITY)


def utility_by_stage(profile: Profile) -> pd.DataFrame:
    """Marginal utility as Table 1 has it: one row a stage; its layers are separated by blanks."""
    columns: Columns = {
        "stage": ("stage", "string"),
        "saved": ("saved_share", "float64"),
        "utility": ("utility", "float64"),
    }
    stages = profile.evidence.utility_by_stage
    table = _of_documents(stages, columns)
    table.insert(1, "layers", pd.Series([" ".join(map(str, stage.layers)) or None for stage in stages], dtype="string"))
    return table


def trials(profile: Profile) -> pd.DataFrame:
    """Plans that were run: one row a plan, with marks for the chosen one and the Pareto front."""
    runs = profile.evidence.trials
    table = _of_documents(runs, {**PLAN, **OUTCOME})
    table["on_pareto_front"] = table.index.isin(pareto_front(runs)).astype("int64")
    table["chosen"] = (table.index == chosen_trial(profile)).astype("int64")
    return table.join(_of_documents(runs, SCORED_BY))


def votes(profile: Profile) -> pd.DataFrame:
    """Bootstrap: one row a choice and a value that won at least once."""
    found = profile.evidence.votes.items()
    rows = [(choice, value, share) for choice, shares in found for value, share in in_order(shares)]
    names = {"choice": "string", "value": "string", "share_of_resamples": "float64"}
    return pd.DataFrame(rows, columns=pd.Index(names)).astype(names)


def isolated(profile: Profile) -> pd.DataFrame:
    """The second stage alone: one row a mode and a layer."""
    return _of_documents(profile.evidence.isolated, ISOLATED)


def witnesses(profile: Profile) -> pd.DataFrame:
    """What each curve says about where a stage begins: one row a curve; no layer where it names none."""
    found = profile.evidence.witnesses.items()
    rows = [(stage, witness.curve, witness.layer, witness.says) for stage, said in found for witness in said]
    names = {"stage": "string", "curve": "string", "layer": "Int64", "says": "string"}
    return pd.DataFrame(rows, columns=pd.Index(names)).astype(names)


def verdicts(profile: Profile) -> pd.DataFrame:
    """Each choice by each kind of evidence: one row a choice; empty where it has no say."""
    rows = [(choice, v.curve, v.kl, v.trials, v.agree) for choice, v in profile.evidence.verdicts.items()]
    names = {"choice": "string", "by_curve": "string", "by_kl": "string", "by_trials": "string", "agree": "bool"}
    return pd.DataFrame(rows, columns=pd.Index(names)).astype(names)


def holds(profile: Profile) -> pd.DataFrame:
    """The choice under other conditions: one row a condition; what flips is separated by blanks."""
    held = profile.evidence.holds
    return _of_documents(held, HELD).assign(
        flips=pd.Series([" ".join(one.flips) or None for one in held], dtype="string")
    )


FRAMES: dict[str, Callable[[Profile], pd.DataFrame]] = {
    "entropy": entropy,
    "entropy_by_k": entropy_by_k,
    "redundancy": redundancy,
    "spectrum": spectrum,
    "utility": utility,
    "utility_by_stage": utility_by_stage,
    "trials": trials,
    "isolated": isolated,
    "votes": votes,
    "witnesses": witnesses,
    "verdicts": verdicts,
    "holds": holds,
}


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


def _side_by_side(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Columns of different lengths side by side; those that were not measured are left out."""
    return pd.DataFrame({name: pd.Series(list(values)) for name, values in columns.items() if len(values)})


def _of_documents(documents: Iterable[Any], columns: Columns) -> pd.DataFrame:
    """One row a document of the evidence."""
    rows = [tuple(getattr(document, field) for field in columns) for document in documents]
    types = dict(columns.values())
    return pd.DataFrame(rows, columns=pd.Index(types)).astype(types)
