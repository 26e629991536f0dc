"""The other pictures of a report: marginal utility, trials and votes. All fit a narrow column."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from halfv_accel import Profile
from halfv_accel.evidence import Trial, Utility
from halfv_probe.views.canvas import labelled_below, literal, middle_cut
from halfv_probe.views.landmarks import percent
from halfv_probe.views.tables import by_answers, chosen_trial, in_order, pareto_front

PALE = LinearSegmentedColormap.from_list("pale", ["white", "#8c8c8c"])  # black text stays readable on all of it
MODES: dict[str, dict[str, Any]] = {
    "none": dict(marker="o", label="IVR alone"),
    "freeze": dict(marker="s", label="IVR, then freeze"),
    "sparse": dict(marker="^", label="IVR, then sparse"),
}
VOTED = {"ivr": "L_IVR (layer)", "ssr": "L_SSR (layer)", "mode": "SSR mode"}


def draw_utility(figure: Figure, profile: Profile) -> None:
    """Marginal utility, one row a layer and one column a retention; frames mark the chosen and the best cell."""
    cells = profile.evidence.utility
    layers = sorted({cell.layer for cell in cells})
    ratios = sorted({cell.retention for cell in cells}, reverse=True)
    table = np.full((len(layers), len(ratios)), np.nan)
    for cell in cells:
        table[layers.index(cell.layer), ratios.index(cell.retention)] = cell.utility
    axes: Any = figure.subplots()
    low, high = float(np.nanmin(table)), float(np.nanmax(table))
    norm = PowerNorm(0.5, low, high if high > low else low + 1)
    axes.imshow(table, norm=norm, cmap=PALE, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        axes.text(column, row, "" if np.isnan(value) else f"{value:.2g}", ha="center", va="center")
    best = best_cell(cells)
    _frame(axes, layers.index(best.layer), ratios.index(best.retention), "black", "-", f"lowest: {_cell(best)}")
    ivr, _ = profile.halfv
    if ivr.layer in layers and ivr.retention in ratios:
        at = layers.index(ivr.layer), ratios.index(ivr.retention)
        _frame(axes, *at, "#c03000", "--", f"chosen IVR: layer {ivr.layer}, {ivr.retention:.3g} kept", inset=0.07)
    axes.set_xticks(range(len(ratios)), [f"{ratio:.3g}" for ratio in ratios])
    axes.set_yticks(range(len(layers)), layers)
    axes.set(xlabel="retention (kept / all visual tokens)", ylabel="pruned once, before decoder layer")
    labelled_below(figure, axes.patches, columns=1)


def draw_trials(figure: Figure, profile: Profile) -> None:
    """Every plan that was run: what it saves against what it loses."""
    evidence = profile.evidence
    trials, chosen = evidence.trials, chosen_trial(profile)
    axes: Any = figure.subplots()
    for mode, style in MODES.items():
        points = [(trial.flops, trial.drop) for trial in trials if trial.ssr_mode == mode]
        if points:
            axes.scatter(
                *zip(*points, strict=True), s=26, facecolor="none", edgecolor="#444444", linewidth=0.9, **style
            )
    front = [trials[index] for index in pareto_front(trials)]
    steps = dict(where="post", color="#10558c", linewidth=1.5)
    axes.step([t.flops for t in front], [t.drop for t in front], label="Pareto front", **steps)
    point = _chosen_point(profile, None if chosen is None else trials[chosen])
    if point is not None:
        if evidence.drop_bound is not None:
            axes.plot([point[0]] * 2, [point[1], evidence.drop_bound], color="black", linewidth=1.2, marker="_")
        star = dict(marker="*", markersize=14, markerfacecolor="#f2b705", markeredgecolor="black", linestyle="none")
        bound = "" if evidence.drop_bound is None else f", line up to its {percent(evidence.goal.confidence)} bound"
        axes.plot(*point, label=f"chosen{bound}", zorder=4, **star)
    if evidence.goal.kind == "max_drop" and evidence.goal.value is not None:
        axes.axhline(
            evidence.goal.value, color="black", linewidth=0.9, linestyle="--", label="asked for: at most this drop"
        )
    if evidence.goal.kind == "target_flops" and evidence.goal.value is not None:
        axes.axvline(
            evidence.goal.value, color="black", linewidth=0.9, linestyle="--", label="asked for: at most these FLOPs"
        )
    lost = "right answers lost" if by_answers(profile) else "replies changed"
    axes.set(xlabel="prefill FLOPs of the decoder / untouched", ylabel=f"drop ({lost}, share of samples)")
    axes.margins(0.05, 0.08)
    labelled_below(figure, axes.get_legend_handles_labels()[0], columns=2)


def draw_votes(figure: Figure, profile: Profile) -> None:
    """How often each value won among resampled calibrations, one panel a choice."""
    votes = {choice: in_order(shares) for choice, shares in profile.evidence.votes.items() if shares}
    rows: Any = figure.subplots(
        len(votes), 1, squeeze=False, sharex=True, height_ratios=[len(v) for v in votes.values()]
    )
    ivr, ssr = profile.halfv
    own = {"ivr": str(ivr.layer), "ssr": str(ssr.layer), "mode": ssr.mode}
    for axes, (choice, shares) in zip(rows[:, 0], votes.items(), strict=True):
        for place, (value, share) in enumerate(shares):
            colour = "#10558c" if value == own[choice] else "#c9c9c9"
            axes.barh(place, share, height=0.62, color=colour, edgecolor="black", linewidth=0.6)
            axes.text(share + 0.015, place, percent(share), va="center", fontsize=8.5)
        axes.set_yticks(range(len(shares)), [plain(value) for value, _ in shares])
        axes.set(xlim=(0, 1.14), ylim=(len(shares) - 0.4, -0.6))
        axes.set_title(VOTED[choice], loc="left", fontsize=9)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    rows[-1, 0].set_xlabel("share of resampled calibrations (dark: the chosen value)")


def plain(value: str) -> str:
    """A vote's value as a label; no second stage is "None" there."""
    return "none" if value == "None" else literal(middle_cut(value, 16))


def best_cell(cells: list[Utility]) -> Utility:
    """The lowest marginal utility; among equals what saves most."""
    return min(cells, key=lambda cell: (cell.utility, -cell.flops_saved))


def _cell(cell: Utility) -> str:
    return f"layer {cell.layer}, {cell.retention:.3g} kept"


def _chosen_point(profile: Profile, trial: Trial | None) -> tuple[float, float] | None:
    """FLOPs and drop of the chosen plan: as the profile states them, else as its trial found them."""
    flops, drop = profile.evidence.flops, profile.evidence.drop
    if trial is not None:
        flops = trial.flops if flops is None else flops
        drop = trial.drop if drop is None else drop
    return None if flops is None or drop is None else (flops, drop)


def _frame(axes: Any, row: int, column: int, colour: str, line: str, label: str, inset: float = 0.0) -> None:
    corner, side = (column - 0.5 + inset, row - 0.5 + inset), 1 - 2 * inset
    style: dict[str, Any] = dict(
        fill=False, edgecolor=colour, linestyle=line, linewidth=2, label=label, clip_on=False, zorder=3
    )
    axes.add_patch(Rectangle(corner, side, side, **style))
