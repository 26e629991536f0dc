"""Is what calibration chooses as good as a sweep? ``python -m tiny_vlm.sweep tiny-llava --out FOLDER``

Every plan of the grid (both layers, mode, ratios) is run on held-out scenes. Beside the best plan of each goal stands
the one that ``calibrate`` chose on calibration scenes, and the one that the entropy curve alone would give. A second
table says how the choice changes with the number of samples (Appendix B.1).
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from halfv_accel import Profile
from halfv_accel.settings import Goal, Settings
from halfv_data.samples import fingerprint, scenes
from halfv_probe.calibration.calibrate import calibrate
from halfv_probe.calibration.journal import Journal
from halfv_probe.calibration.measurements import Measurements
from halfv_probe.calibration.search import usual_samples
from halfv_probe.choice.choose import choose
from halfv_probe.choice.confidence import upper_bound
from halfv_probe.choice.findings import findings_of
from halfv_probe.choice.holds import Known
from halfv_probe.choice.pick import Picked
from halfv_probe.choice.stages import Stages
from halfv_probe.trials.candidates import Candidate, all_candidates, alone_candidates, anchor_ratio
from halfv_probe.trials.outcomes import Trials
from halfv_probe.trials.prompts import Prompts
from tiny_vlm import NAMES, load
from tiny_vlm.evaluate import weights_fingerprint, write_json

GOALS = (
    Goal(),
    Goal(kind="target_flops", value=0.6),
    Goal(kind="target_flops", value=0.45),
    Goal(kind="target_flops", value=0.3),
    Goal(kind="max_drop", value=0.02),
)
BATCH = 10
SIZES = (10, 30, 100, 300)
DRAWS = 20


@dataclass(frozen=True)
class Row:
    """One goal: the plan that calibration chose, and the best one that a sweep of held-out scenes finds.

    ``holds`` is the law of the goal. Budget: within it, and at most a point more lost than by the best plan within it.
    Promise: kept on held-out scenes, for at most a tenth more FLOPs than the cheapest plan that is shown to keep it
    there (95 % confidence). Paper's ratios: no plan with them is a tenth cheaper and loses no more.
    """

    goal: str
    chosen: str
    flops: float
    drop: float
    best: str
    best_flops: float
    best_drop: float
    holds: bool


def show(candidate: Candidate) -> str:
    """A plan in a few words."""
    pruned = f"{candidate.ivr_retention:.0%} from {candidate.ivr_layer}" if candidate.ivr_retention < 1 else "all"
    if candidate.ssr_mode == "none":
        return pruned
    kept = f" {candidate.ssr_retention:.0%}" if candidate.ssr_retention else ""
    return f"{pruned}, {candidate.ssr_mode}{kept} from {candidate.ssr_layer}"


def chosen_by(profile: Profile) -> Candidate:
    """The candidate that a profile holds."""
    return Candidate.of(profile.plan())


def judge(goal: Goal, chosen: Candidate, table: Trials) -> Row:
    """Compare a choice with the whole sweep, by the law that belongs to its goal."""
    mine = table.candidates.index(chosen)
    drop, flops = table.drop, table.flops
    if goal.kind == "target_flops":
        best = choose(table, goal)
        holds = flops[mine] <= (goal.value or 0) and drop[mine] <= drop[best] + 0.01 + 1e-9
    elif goal.kind == "max_drop":
        best = _cheapest(
            table, [upper_bound(int(n), table.lost.shape[1]) <= (goal.value or 0) for n in table.lost.sum(axis=1)]
        )
        holds = drop[mine] <= (goal.value or 0) + 1e-9 and flops[mine] <= 1.1 * flops[best]
    else:
        beside = [n for n, c in enumerate(table.candidates) if _has_paper_ratios(c)]
        cheaper = [n for n in beside if flops[n] <= 0.9 * flops[mine]]
        best = min(cheaper, key=lambda n: (drop[n], flops[n]), default=mine)
        holds = best == mine or drop[best] > drop[mine]
    return Row(
        goal=f"{goal.kind} {goal.value}" if goal.value else "paper's ratios",
        chosen=show(chosen),
        flops=float(flops[mine]),
        drop=float(drop[mine]),
        best=show(table.candidates[best]),
        best_flops=float(flops[best]),
        best_drop=float(drop[best]),
        holds=bool(holds),
    )


def _cheapest(table: Trials, allowed: Sequence[bool] | NDArray[np.bool_]) -> int:
    numbers = np.flatnonzero(allowed)
    return int(numbers[np.lexsort((table.drop[numbers], table.flops[numbers]))[0]])


def _has_paper_ratios(candidate: Candidate) -> bool:
    ratios = (candidate.ssr_mode, candidate.ivr_retention, candidate.ssr_retention)
    return ratios in (("freeze", 0.5, None), ("sparse", 0.25, 0.05))


def markdown(rows: Sequence[Row]) -> str:
    """One row a goal."""
    lines = [
        "| goal | chosen on calibration scenes | FLOPs | lost | best in the sweep for it | FLOPs | lost | holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.goal} | {row.chosen} | {row.flops:.3f} | {row.drop:.3f} "
            f"| {row.best} | {row.best_flops:.3f} | {row.best_drop:.3f} | {'yes' if row.holds else 'NO'} |"
        )
    return "\n".join(lines)


class Sweep:
    """One embedded model; choices are made on calibration scenes and judged on held-out ones."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.processor = load(name, dtype="float32")
        self.depth = self.model.config.get_text_config().num_hidden_layers

    def measurements(self, samples: int, split: str) -> Measurements:
        drawn = list(scenes(samples, 0, split))  # type: ignore[arg-type]
        prompts = Prompts(self.processor, drawn, batch_size=BATCH)
        return Measurements(self.model, prompts, "paper", Journal(), self.report)

    def report(self, step: str, done: int, total: int) -> None:
        if done % 100 == 0:
            print(f"{self.name}: {step} {done}/{total}", file=sys.stderr, flush=True)

    def table(self, samples: int, split: str, beside: Iterable[Candidate]) -> Trials[Candidate]:
        """Every plan of the grid on scenes of one split, and some beside them."""
        measure = self.measurements(samples, split)
        plans = dict.fromkeys([*all_candidates(self.depth), *beside])
        return measure.trials(f"{split} sweep", list(plans), measure.replies())

    def profiles(self) -> Iterator[tuple[Goal, Profile]]:
        """What `halfv calibrate` chooses for every goal by default; what goals share is measured once."""
        journal = Journal()  # the samples of one goal are the first of the next
        for goal in GOALS:
            drawn = list(scenes(usual_samples(goal), 0, "calibration"))
            yield (
                goal,
                calibrate(
                    self.model,
                    Prompts(self.processor, drawn, batch_size=BATCH),
                    Settings(model_id=self.name, data="default", data_fingerprint=fingerprint(drawn), goal=goal),
                    journal=journal,
                    progress=self.report,
                ),
            )

    def efficiency(self, heldout: Trials[Candidate]) -> list[dict[str, Any]]:
        """The choice from fewer samples, drawn several times each: what it costs on held-out scenes."""
        most = max(SIZES)
        measure = self.measurements(most, "calibration")
        layer_kl, suffix_kl, _ = measure.redundancies(most)
        findings, _ = findings_of(measure.curves(most), layer_kl, suffix_kl, "paper", "elbow")
        replied, candidates = measure.replies(), heldout.candidates
        table = measure.trials("calibration sweep", candidates, replied)
        alone = measure.trials("second stage alone", list(alone_candidates(range(2, self.depth - 1))), replied)
        draw = np.random.default_rng(0)
        rows = []
        for size in SIZES:
            draws = [draw.permutation(most) < size for _ in range(DRAWS if size < most else 1)]
            for goal in (Goal(), Goal(kind="target_flops", value=0.45)):
                known = Known(findings, alone, table, goal)
                rows.append(_spread(size, goal, [known.of(drawn).choice() for drawn in draws], heldout))
        return rows


def _spread(
    size: int, goal: Goal, found: Sequence[tuple[Stages, Picked | None]], heldout: Trials[Candidate]
) -> dict[str, Any]:
    """How much choices from this many samples differ, and what they cost on held-out scenes."""
    numbers = [heldout.candidates.index(picked.candidate) for _, picked in found if picked is not None]
    drops, flops = heldout.drop[numbers], heldout.flops[numbers]
    onsets, valleys = [stages.ivr_layer for stages, _ in found], [stages.ssr_layer for stages, _ in found]
    return {
        "samples": size,
        "goal": goal.kind,
        "draws": len(found),
        "onset": [min(onsets), max(onsets)],
        "valley": [min(valleys), max(valleys)],
        "plans": len(set(numbers)),
        "flops_mean": float(flops.mean()),
        "drop_mean": float(drops.mean()),
        "drop_worst": float(drops.max()),
    }


def efficiency_markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| samples | goal | draws | onset | valley | different plans | FLOPs, mean | lost, mean | lost, worst |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        onset, valley = ("-".join(map(str, sorted(set(row[name])))) for name in ("onset", "valley"))
        lines.append(
            f"| {row['samples']} | {row['goal']} | {row['draws']} | {onset} | {valley} | {row['plans']} "
            f"| {row['flops_mean']:.3f} | {row['drop_mean']:.3f} | {row['drop_worst']:.3f} |"
        )
    return "\n".join(lines)


def curve_only(profile: Profile, table: Trials) -> dict[str, Any] | None:
    """The plan that reads both layers off the entropy curve and the mode off KL, with the paper's ratios."""
    layers = profile.evidence.curve_only
    if not layers:
        return None
    candidate = Candidate(layers["ivr"], 0.5, anchor_ratio(0.5), "freeze", layers["ssr"])
    if profile.evidence.verdicts["mode"].kl == "sparse":
        candidate = Candidate(layers["ivr"], 0.25, anchor_ratio(0.25), "sparse", layers["ssr"], 0.05)
    number = table.candidates.index(candidate)
    return {"plan": show(candidate), "flops": float(table.flops[number]), "drop": float(table.drop[number])}


def as_csv(table: Trials) -> str:
    """Every plan of the sweep, to six digits."""
    plans = pd.DataFrame([asdict(candidate) for candidate in table.candidates]).astype({"ssr_layer": "Int64"})
    measured = plans.assign(flops_share=table.flops, lost_share=table.drop, kl_nats=table.kl.mean(axis=1))
    return measured.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def draw(table: Trials, rows: Sequence[Row], title: str, path: Path) -> None:
    """Heat map: answers lost over both layers, IVR keeping half, then freeze or sparse 5 %."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (mode, retention, kept) in zip(
        figure.subplots(1, 2), (("freeze", 0.5, None), ("sparse", 0.25, 0.05)), strict=True
    ):
        cells = {
            (c.ivr_layer, c.ssr_layer): (drop, flops)
            for c, drop, flops in zip(table.candidates, table.drop, table.flops, strict=True)
            if (c.ssr_mode, c.ivr_retention, c.ssr_retention) == (mode, retention, kept)
        }
        depth = max(ssr for _, ssr in cells if ssr is not None) + 1
        grid = np.full((depth, depth), np.nan)
        for (ivr, ssr), (drop, flops) in cells.items():
            grid[ivr, ssr] = drop
            axes.text(
                ssr,
                ivr,
                f"{drop:.0%}\n{flops:.0%}",
                ha="center",
                va="center",
                fontsize=6,
                color="black" if drop < 0.25 else "white",
            )
        axes.imshow(grid, cmap="Greys", vmin=0, vmax=0.5, origin="lower")
        axes.set(xlabel="L_SSR", ylabel="L_IVR", xlim=(0.5, depth - 0.5), ylim=(0.5, depth - 0.5))
        axes.set_title(f"keep {retention:.0%}, then {mode}{f' {kept:.0%}' if kept else ''}", fontsize=10)
    figure.suptitle(f"{title}: share of answers lost (above) and of prefill FLOPs (below)", fontsize=11)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tiny_vlm.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("--heldout", type=int, default=600, help="held-out scenes (default 600)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sweep = Sweep(args.model)
    profiles = list(sweep.profiles())
    table = sweep.table(args.heldout, "heldout", [chosen_by(profile) for _, profile in profiles])
    rows = [judge(goal, chosen_by(profile), table) for goal, profile in profiles]
    efficiency = sweep.efficiency(table)
    document = {
        "model": args.model,
        "goals": [asdict(row) for row in rows],
        "curve_only": curve_only(profiles[0][1], table),
        "votes": [profile.evidence.votes for _, profile in profiles],
        "sample_efficiency": efficiency,
        "provenance": {
            "weights": weights_fingerprint(args.model),
            "heldout": {
                "n": args.heldout,
                "seed": 0,
                "fingerprint": fingerprint(list(scenes(args.heldout, 0, "heldout"))),
            },
            "calibration": {"n": [usual_samples(goal) for goal in GOALS], "seed": 0},
            "plans": len(table.candidates),
            "dtype": str(sweep.model.dtype),
            "device": "cpu",
            "versions": {
                "python": platform.python_version(),
                **{n: version(n) for n in ("torch", "transformers", "numpy")},
            },
        },
    }
    write_json(args.out / "sweep.json", document)
    (args.out / "plans.csv").write_text(as_csv(table), encoding="utf-8")
    draw(table, rows, args.model, args.out / "sweep.png")
    text = f"# {args.model}\n\n{markdown(rows)}\n\n{efficiency_markdown(efficiency)}\n"
    (args.out / "sweep.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
