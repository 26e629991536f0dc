"""Entropy over depth, and what each layer's work on visual tokens is worth: Figure 2 of the paper for one model.

Readable without colours: curves differ in line and marker, stages in shades of grey. Names stand outside the axes, in a
ribbon of three rows above them, so that no name covers a curve; the two boundaries have a row each, so that their names
do not meet however near the layers are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath

from halfv_accel import Profile
from halfv_probe.views import tables
from halfv_probe.views.canvas import WIDE, labelled_below, layer_ticks, middle_cut, save
from halfv_probe.views.landmarks import Band, bands, marks
from halfv_probe.views.tables import Scale

CURVES: dict[Any, dict[str, Any]] = {
    "visual": dict(color="#10558c", linewidth=2.2, marker="o", markersize=4.5),
    "text": dict(color="#b5452c", linewidth=1.3, linestyle="--", marker="s", markersize=4, markerfacecolor="white"),
    "all": dict(color="#555555", linewidth=1.3, linestyle=":", marker="^", markersize=4),
}
LAYER_BAR = dict(color="#8fb3d1", edgecolor="black", linewidth=0.6, width=0.62)
SUFFIX_LINE = dict(color="black", linewidth=1.3, linestyle="-.", marker="D", markersize=3.5, markerfacecolor="white")
NULL_LINE = dict(color="#8a8a8a", linewidth=0.8, label="random weights")
DOTTED = (0, (1, 1.5))
LABEL_BOX = dict(boxstyle="square,pad=0.1", facecolor="white", edgecolor="none")
ROUNDING_KL = 1e-8  # nats; the last layer's KL is 0 in exact arithmetic
RIBBON_INCHES = 0.66


def plot_entropy(profile: Profile, path: Path | str, scale: Scale = "nats") -> Path:
    """Draw entropy over depth with the stages and the chosen layers, and the layer redundancy below.

    Parameters
    ----------
    profile : Profile
        With its evidence. What was not measured (spread over samples, suffix KL, random weights) is left out.
    path : path
        PNG, PDF or SVG; the ending decides. Written in full or not at all.
    scale : {"nats", "zscore"}
        Entropies as they are, or each curve less its mean, in its standard deviations over depth.

    Returns
    -------
    Path
        The CSV beside the picture with the numbers of all curves, one row a layer boundary.

    Raises
    ------
    HalfVError
        If the ending is another one, or a file cannot be written.
    """
    numbers = tables.entropy(profile)
    if scale == "zscore":
        for group, curve in profile.evidence.entropy.items():
            numbers[f"entropy_{group}_zscore"] = tables.zscores(curve)
    return save(path, numbers, lambda figure: draw_lifecycle(figure, profile, scale), (WIDE, 7.0))


def draw_lifecycle(figure: Figure, profile: Profile, scale: Scale = "nats") -> None:
    """The picture of `plot_entropy`: ribbon, entropy, redundancy, one below the other."""
    height = figure.get_size_inches()[1] - 1.6
    ribbon, top, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[RIBBON_INCHES, 0.6 * height, 0.4 * height])
    name, samples = middle_cut(profile.model.id, 56), profile.calibration.samples
    stable = "" if profile.evidence.stable else "\n(no three stages found: cautious choice)"
    figure.suptitle(f"{name}, {samples} samples{stable}", fontsize=11, parse_math=False)
    entropy_panel(top, profile, profile.evidence.k, scale)
    _redundancy(bottom, profile)
    bottom.set_xlabel("decoder layer")
    handles = [*stage_handles(profile), *bottom.get_legend_handles_labels()[0]]
    labelled_below(figure, [*top.get_legend_handles_labels()[0], *handles], columns=3)
    _ribbon(ribbon, profile)


def draw_entropy(figure: Figure, profile: Profile) -> None:
    """Entropy over depth alone, for a narrow column."""
    ribbon, axes = figure.subplots(2, 1, sharex=True, height_ratios=[RIBBON_INCHES, figure.get_size_inches()[1] - 1.9])
    entropy_panel(axes, profile, profile.evidence.k)
    axes.set_xlabel("decoder layer (its input; out: the last layer's output)")
    labelled_below(figure, [*axes.get_legend_handles_labels()[0], *stage_handles(profile)], columns=2)
    _ribbon(ribbon, profile)


def draw_redundancy(figure: Figure, profile: Profile) -> None:
    """Layer KL, suffix KL and, if it was measured, how often the next token then stays."""
    agreement = profile.evidence.suffix_agreement
    rows = figure.subplots(
        1 + bool(agreement), 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + bool(agreement)]
    )
    axes = rows[0, 0]
    _redundancy(axes, profile)
    if agreement:
        below = rows[1, 0]
        background(below, profile)
        below.plot(agreement, **SUFFIX_LINE)
        below.set(ylim=(-0.04, 1.04), ylabel="next token\nstays (share)")
    rows[-1, 0].set_xlabel("decoder layer")
    labelled_below(figure, axes.get_legend_handles_labels()[0], columns=1)


def stage_handles(profile: Profile) -> list[Any]:
    """Legend entries of the stages."""
    return [Patch(facecolor=band.grey, edgecolor="black", linewidth=0.6, label=band.label) for band in bands(profile)]


def entropy_panel(axes: Any, profile: Profile, k: int, scale: Scale = "nats") -> None:
    """The three curves for this number of eigenvalues; for the profile's own, what random weights give, too."""
    evidence = profile.evidence
    background(axes, profile)
    sparse = max(1, profile.model.num_layers // 24)  # markers must not merge into a band
    for group, style in CURVES.items():
        curve, spread = tables.curves_by_k(profile)[k][group]
        centre, unit = tables.centre_and_unit(curve, scale)
        axes.plot([(y - centre) / unit for y in curve], label=f"{group} tokens", markevery=sparse, **style)
        if spread:
            low, high = (
                [(y + sign * s - centre) / unit for y, s in zip(curve, spread, strict=True)] for sign in (-1, 1)
            )
            axes.fill_between(range(len(curve)), low, high, color=style["color"], alpha=0.16, linewidth=0)
    if evidence.null is not None and k == evidence.k:
        for group, style in CURVES.items():
            centre, unit = tables.centre_and_unit(evidence.entropy[group], scale)
            untrained = [(y - centre) / unit for y in evidence.null.entropy[group]]
            axes.plot(untrained, linestyle=style.get("linestyle", "-"), zorder=1.5, **NULL_LINE)
    unit_name = "nats" if scale == "nats" else "standard deviations"
    axes.set_ylabel(f"entropy of the top {k}\neigenvalues ({unit_name})")


def _redundancy(axes: Any, profile: Profile) -> None:
    """KL on a log axis; what is 0, but for rounding, has no place there and is marked at the bottom."""
    evidence = profile.evidence
    background(axes, profile)
    untrained = evidence.null.layer_kl if evidence.null is not None else []
    positive = [value for value in (*evidence.layer_kl, *evidence.suffix_kl, *untrained) if value > ROUNDING_KL]
    floor = min(positive, default=1e-6) / 3
    if evidence.layer_kl:
        bars = [max(value - floor, 0) for value in evidence.layer_kl]
        axes.bar(range(len(bars)), bars, bottom=floor, label="KL: this layer stops updating visual tokens", **LAYER_BAR)
    if evidence.suffix_kl:
        curve = [value if value > floor else math.nan for value in evidence.suffix_kl]
        axes.plot(curve, label="KL: this and all deeper layers stop", **SUFFIX_LINE)
    if untrained:
        axes.plot([value if value > floor else math.nan for value in untrained], **NULL_LINE)
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    for layer, values in enumerate(zip_longest(evidence.layer_kl, evidence.suffix_kl, fillvalue=math.inf)):
        if min(values) <= floor:
            axes.text(layer, floor * 1.2, "0", ha="center", va="bottom", fontsize=8, bbox=LABEL_BOX)
    axes.set_ylabel("KL of the next token,\nvisual updates off (nats)")


def background(axes: Any, profile: Profile) -> None:
    """Shades of the stages, dotted lines at the boundaries, whole layers on the x axis."""
    last = profile.model.num_layers
    for band in bands(profile):
        axes.axvspan(band.start, band.end, color=band.grey, zorder=0, linewidth=0)
    for layer, _ in marks(profile):
        axes.axvline(layer, color="black", linewidth=1, linestyle=DOTTED, zorder=1)
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_xticks(*layer_ticks(last))


def _ribbon(axes: Any, profile: Profile) -> None:
    """Names above the plots: stages in the lowest row, each boundary in a row of its own."""
    axes.figure.draw_without_rendering()  # now the layout is known, and with it how much room a layer has
    last = profile.model.num_layers
    points = axes.get_window_extent().width / axes.figure.dpi * 72 / (last + 1)  # a layer
    axes.set_ylim(0, 3)
    axes.axis("off")
    for band in bands(profile):
        axes.fill_between([band.start, band.end], 0, 1, facecolor=band.grey, edgecolor="black", linewidth=0.6)
        fitting = (text for text in (f"{band.numeral} {band.name}", band.numeral) if _fits(text, band, points))
        box = dict(LABEL_BOX, facecolor=band.grey)  # a plan's line may run through a stage of the curve
        middle = (band.start + band.end) / 2
        axes.text(middle, 0.46, next(fitting, ""), ha="center", va="center", fontsize=8.5, bbox=box, zorder=4)
    for layer, text, row, side in _placed(marks(profile), points, last):
        axes.plot([layer, layer], [0, row + 0.5], color="black", linewidth=1, linestyle=DOTTED, clip_on=False)
        shift = 3 if side == "left" else -3
        where = dict(xytext=(shift, 0), textcoords="offset points", ha=side, va="center", fontsize=8.5)
        axes.annotate(text, (layer, row + 0.5), bbox=LABEL_BOX, annotation_clip=False, **where)


def _placed(named: list[tuple[int, str]], points: float, last: int) -> Iterator[tuple[int, str, int, str]]:
    """Layer, text, row, and the side of the text that touches the line, so that no line runs through a text.

    If the deeper boundary's text stands to the right of its line, it takes the lower row: the other line passes on its
    left. Where there is no room for that, its text stands to the left in the upper row, which no other line reaches.
    """
    room = [_width(text) + 6 for _, text in named]
    sides = [
        "left" if (last - layer) * points > need else "right" for (layer, _), need in zip(named, room, strict=True)
    ]
    rows = [2, 1]
    if sides[-1] == "right":
        rows = [1, 2]
        if named[0][0] * points > room[0]:
            sides[0] = "right"
    for (layer, text), row, side in zip(named, rows, sides, strict=False):
        yield layer, text, row, side


def _fits(text: str, band: Band, points: float) -> bool:
    return _width(text) + 4 < (band.end - band.start) * points


def _width(text: str) -> float:
    """Points that a text of size 8.5 takes."""
    return TextPath((0, 0), text, size=8.5).get_extents().width
