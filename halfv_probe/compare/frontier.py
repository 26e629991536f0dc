"""The frontier: score against FLOPs of everything that was compared, and budget by budget every name with its interval.

Above, all points, with names for those on the Pareto front and for what others are compared with. Below, one panel a
budget names them all, sorted by score, so that no name needs room between points. Readable without colours: verdicts
differ in their marker, budgets in theirs.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from halfv_probe.choice.choose import pareto
from halfv_probe.compare.labels import place_labels
from halfv_probe.compare.page import named, title
from halfv_probe.compare.scores import DOWNSAMPLE, RANDOM, UNTOUCHED, budgets, of_budget
from halfv_probe.compare.verdicts import BETTER, WORSE, Verdicts
from halfv_probe.views.canvas import labelled_below, literal, middle_cut, save
from halfv_probe.views.several_models import COLOURS, MARKERS

PANELS = 3  # a row of budgets
LONGEST = 30  # letters of a name
INCHES = 10.0  # width
CAPTION = (
    "What to see. Above: up and left is better; the black line is the Pareto front of what was measured, bars are 95 % "
    "intervals of each score for itself, so neighbours on the line need not differ. Below: filled markers are shown to "
    "be better (▲) or worse (▼) than random at the same budget, corrected for all that are compared there; hollow "
    "circles are not told apart from it. The grey band is random, the dashed line the untouched model."
)
LOOKS = {
    BETTER: dict(marker="^", color="#10558c", markerfacecolor="#10558c"),
    WORSE: dict(marker="v", color="#b5452c", markerfacecolor="#b5452c"),
    None: dict(marker="o", color="#444444", markerfacecolor="white"),
}


def plot_frontier(verdicts: Verdicts, path: Path | str) -> Path:
    """Draw the comparison, and write the numbers beside it as CSV.

    Returns
    -------
    Path
        The CSV: one row an entrant, as `Verdicts.overall`, with ``on_pareto_front``.

    Raises
    ------
    HalfVError
        If a file cannot be written.
    """
    return save(path, numbers(verdicts), lambda figure: draw_frontier(figure, verdicts), inches(verdicts))


def numbers(verdicts: Verdicts) -> pd.DataFrame:
    """What is drawn, in full precision."""
    overall = verdicts.overall
    front = pareto(list(overall["flops_share"]), list(1 - overall["score"]))
    return overall.assign(on_pareto_front=overall.index.isin(front).astype("int64"))


def inches(verdicts: Verdicts) -> tuple[float, float]:
    """Page size: as many lines as the longest panel of each row has names."""
    return INCHES, 5.6 + sum(0.7 + 0.155 * lines for lines in _lines(verdicts))


def draw_frontier(figure: Figure, verdicts: Verdicts) -> None:
    """The picture of `plot_frontier`."""
    table, lines = numbers(verdicts), _lines(verdicts)
    found = budgets(table)
    heights = [4.2, *(0.5 + 0.155 * most for most in lines)]
    grid = figure.add_gridspec(1 + len(lines), PANELS, height_ratios=heights)
    top = figure.add_subplot(grid[0, :])
    shapes = _scatter(top, table, found, verdicts)
    for place, budget in enumerate(found):
        panel = figure.add_subplot(grid[1 + place // PANELS, place % PANELS])
        _panel(panel, table, budget, verdicts)
    figure.suptitle(fill(CAPTION, 160), fontsize=8, ha="left", x=0.01)
    top.set_title(f"{verdicts.measure} against FLOPs, {verdicts.samples} samples", fontsize=11)
    labelled_below(figure, shapes, columns=len(shapes))
    place_labels(top, _labels(table), list(zip(table["flops_share"], 100 * table["score"], strict=True)))


def _scatter(axes: Any, table: pd.DataFrame, found: list[float | None], verdicts: Verdicts) -> list[Line2D]:
    """Every entrant; a legend entry for each budget and for the front."""
    handles = []
    untouched = table["method"] == UNTOUCHED
    groups = [(_head(budget), of_budget(table, budget) & ~untouched) for budget in found]
    for place, (name, rows) in enumerate([("untouched", untouched), *groups]):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        own = table[rows]
        if own.empty:
            continue
        look = dict(marker=marker, color=colour, linestyle="none", markersize=5, markerfacecolor="white")
        axes.errorbar(
            own["flops_share"], 100 * own["score"], yerr=_bars(own), elinewidth=0.5, capsize=0, alpha=0.85, **look
        )
        handles.append(Line2D([], [], label=name, **look))
    front = table[table["on_pareto_front"] == 1].sort_values("flops_share")
    line = dict(color="black", linewidth=1.1, drawstyle="steps-post", zorder=1.5)
    axes.plot(front["flops_share"], 100 * front["score"], **line)
    axes.plot(front["flops_share"], 100 * front["score"], ".", color="black", markersize=4, zorder=5)
    handles.append(Line2D([], [], label="Pareto front", **line))
    axes.set_xlabel("prefill FLOPs, selection included (share of the untouched model's)")
    axes.set_ylabel(f"{verdicts.measure} (%)")
    axes.margins(x=0.08, y=0.12)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    return handles


def _panel(axes: Any, table: pd.DataFrame, budget: float | None, verdicts: Verdicts) -> None:
    """Every entrant of a budget on a line of its own, the best on top."""
    untouched = table["method"] == UNTOUCHED
    own = table[of_budget(table, budget) & ~untouched].sort_values("score", ascending=True, kind="stable")
    random = own[own["method"] == RANDOM]
    if budget is not None and len(random) == 1:
        axes.axvspan(*(100 * random[["low", "high"]].iloc[0]), color="#e4e4e4", linewidth=0, zorder=0)
    for score in table.loc[untouched, "score"]:
        axes.axvline(100 * score, color="black", linewidth=0.9, linestyle="--", zorder=1)
    for line, (_, row) in enumerate(own.iterrows()):
        verdict = row["against_random"] if row["against_random"] in (BETTER, WORSE) else None
        bars = _bars(row.to_frame().T)
        axes.errorbar([100 * row["score"]], [line], xerr=bars, markersize=4, elinewidth=0.8, **LOOKS[verdict])
    axes.set_yticks(range(len(own)), [literal(middle_cut(title(row), LONGEST)) for _, row in own.iterrows()], fontsize=7)
    axes.set_ylim(-0.7, len(own) - 0.3)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(_head(budget), fontsize=9, loc="left")
    axes.set_xlabel(f"{verdicts.measure} (%)", fontsize=8)


def _head(budget: float | None) -> str:
    return "no matched budget" if budget is None else f"budget {named(budget)}"


def _bars(own: pd.DataFrame) -> list[list[float]]:
    """How far intervals reach below and above, in percent."""
    return [
        [max(0.0, 100 * float(reach)) for reach in ends]
        for ends in (own["score"] - own["low"], own["high"] - own["score"])
    ]


def _labels(table: pd.DataFrame) -> list[tuple[float, float, str]]:
    """Names for the front and for what others are compared with, the front first."""
    compared = table["method"].isin([UNTOUCHED, RANDOM, DOWNSAMPLE])
    shown = table[compared | (table["on_pareto_front"] == 1)].sort_values("on_pareto_front", ascending=False)
    return [(row["flops_share"], 100 * row["score"], literal(_short(row))) for _, row in shown.iterrows()]


def _short(row: pd.Series) -> str:
    return "random" if row["method"] == RANDOM else middle_cut(title(row), LONGEST)


def _lines(verdicts: Verdicts) -> list[int]:
    """Of each row of panels, the most names that one of them has."""
    table = verdicts.overall
    sizes = [int((of_budget(table, budget) & (table["method"] != UNTOUCHED)).sum()) for budget in budgets(table)]
    return [max(sizes[start : start + PANELS]) for start in range(0, len(sizes), PANELS)]
