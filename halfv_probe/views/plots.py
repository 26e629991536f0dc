"""Entropy over depth, and what each layer's work on visual tokens is worth: Figure 2 of the paper for one model.

Readable without colours: curves differ in line and marker, stages in shades of grey. Names stand outside the axes, in a
ribbon of three rows above them, so that no name covers a curve; the two boundaries have a row each, so that their names
do not meet however near the layers are.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath

from halfv_accel import HalfVError, Profile
from halfv_accel.files import check_writable, write_atomically
from halfv_probe.views import tables
from halfv_probe.views.landmarks import Band, bands, marks

KINDS = ("png", "svg", "pdf")
CURVES: dict[Any, dict[str, Any]] = {
    "visual": dict(color="#10558c", linewidth=2.2, marker="o", markersize=4.5),
    "text": dict(color="#b5452c", linewidth=1.3, linestyle="--", marker="s", markersize=4, markerfacecolor="white"),
    "all": dict(color="#555555", linewidth=1.3, linestyle=":", marker="^", markersize=4),
}
LAYER_BAR = dict(color="#8fb3d1", edgecolor="black", linewidth=0.6, width=0.62)
SUFFIX_LINE = dict(color="black", linewidth=1.3, linestyle="-.", marker="D", markersize=3.5, markerfacecolor="white")
# What a user's own settings must not change: formulas in LaTeX need programs, and random ids make no two files alike.
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.usetex": False,
    "svg.hashsalt": "halfv",
    "svg.fonttype": "path",
}
LABEL_BOX = dict(boxstyle="square,pad=0.1", facecolor="white", edgecolor="none")
ROUNDING_KL = 1e-8  # nats; the last layer's KL is 0 in exact arithmetic
RIBBON_INCHES = 0.66
WIDE, NARROW = 8.0, 4.6  # inches: a page of its own, and a column that a telephone can show


def plot_entropy(profile: Profile, path: Path | str) -> Path:
    """Draw entropy over depth with the stages and the chosen layers, and the layer redundancy below.

    Parameters
    ----------
    profile : Profile
        With its evidence. What was not measured (spread over samples, suffix KL) is left out.
    path : path
        PNG, PDF or SVG; the ending decides. Written in full or not at all.

    Returns
    -------
    Path
        The CSV beside the picture with the numbers of all curves, one row a layer boundary.

    Raises
    ------
    HalfVError
        If the ending is another one, or a file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in KINDS:
        raise HalfVError(f"{path} ends in {kind or 'nothing'}: name a picture that ends in .png, .pdf or .svg")
    numbers = path.with_suffix(".csv")
    for file in (path, numbers):
        check_writable(file)
    picture = render(lambda figure: draw_lifecycle(figure, profile), (WIDE, 7.0), kind)
    write_atomically(path, picture)
    write_atomically(numbers, tables.csv(tables.entropy(profile)).encode())
    return numbers


def render(draw: Callable[[Figure], None], inches: tuple[float, float], kind: str = "svg") -> bytes:
    """Draw on a new figure of (width, height) inches and return the file; equal drawings give equal bytes."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a model's name may be in any script
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        _settle(figure)
        content = io.BytesIO()
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(content, format=kind, dpi=130, metadata=dates.get(kind))
    return content.getvalue()


def _settle(figure: Figure) -> None:
    """Lay the axes out and round where they are: the solver's last bits differ from run to run, and show in SVG."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(edge, 5) for edge in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def draw_lifecycle(figure: Figure, profile: Profile) -> None:
    """The picture of `plot_entropy`: ribbon, entropy, redundancy, one below the other."""
    height = figure.get_size_inches()[1] - 1.6
    ribbon, top, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[RIBBON_INCHES, 0.6 * height, 0.4 * height])
    name, samples = middle_cut(profile.model.id, 56), profile.calibration.samples
    stable = "" if profile.evidence.stable else "\n(no three stages found: cautious choice)"
    figure.suptitle(f"{name}, {samples} samples{stable}", fontsize=11, parse_math=False)
    _entropy(top, profile)
    _redundancy(bottom, profile)
    bottom.set_xlabel("decoder layer")
    handles = [*stage_handles(profile), *bottom.get_legend_handles_labels()[0]]
    labelled_below(figure, [*top.get_legend_handles_labels()[0], *handles], columns=3)
    _ribbon(ribbon, profile)


def draw_entropy(figure: Figure, profile: Profile) -> None:
    """Entropy over depth alone, for a narrow column."""
    ribbon, axes = figure.subplots(2, 1, sharex=True, height_ratios=[RIBBON_INCHES, figure.get_size_inches()[1] - 1.9])
    _entropy(axes, profile)
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
        _background(below, profile)
        below.plot(agreement, **SUFFIX_LINE)
        below.set(ylim=(-0.04, 1.04), ylabel="next token\nstays (share)")
    rows[-1, 0].set_xlabel("decoder layer")
    labelled_below(figure, axes.get_legend_handles_labels()[0], columns=1)


def stage_handles(profile: Profile) -> list[Any]:
    """Legend entries of the stages."""
    return [Patch(facecolor=band.grey, edgecolor="black", linewidth=0.6, label=band.label) for band in bands(profile)]


def labelled_below(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """One legend under all axes, where it covers nothing."""
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def middle_cut(text: str, limit: int) -> str:
    """A long text without its middle: of a path, the end tells most."""
    keep = (limit - 1) // 3
    return text if len(text) <= limit else f"{text[:keep]}…{text[keep + 1 - limit :]}"


def _entropy(axes: Any, profile: Profile) -> None:
    evidence = profile.evidence
    _background(axes, profile)
    sparse = max(1, profile.model.num_layers // 24)  # markers must not merge into a band
    for group, style in CURVES.items():
        curve = evidence.entropy[group]
        axes.plot(curve, label=f"{group} tokens", markevery=sparse, **style)
        if spread := evidence.entropy_std.get(group):
            low, high = ([y + sign * s for y, s in zip(curve, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(range(len(curve)), low, high, color=style["color"], alpha=0.16, linewidth=0)
    axes.set_ylabel(f"entropy of the top {evidence.k}\neigenvalues (nats)")


def _redundancy(axes: Any, profile: Profile) -> None:
    """KL on a log axis; what is 0, but for rounding, has no place there and is marked at the bottom."""
    evidence = profile.evidence
    _background(axes, profile)
    positive = [value for value in (*evidence.layer_kl, *evidence.suffix_kl) if value > ROUNDING_KL]
    floor = min(positive, default=1e-6) / 3
    if evidence.layer_kl:
        bars = [max(value - floor, 0) for value in evidence.layer_kl]
        axes.bar(range(len(bars)), bars, bottom=floor, label="KL: this layer stops updating visual tokens", **LAYER_BAR)
    if evidence.suffix_kl:
        curve = [value if value > floor else math.nan for value in evidence.suffix_kl]
        axes.plot(curve, label="KL: this and all deeper layers stop", **SUFFIX_LINE)
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    for layer, values in enumerate(zip_longest(evidence.layer_kl, evidence.suffix_kl, fillvalue=math.inf)):
        if min(values) <= floor:
            axes.text(layer, floor * 1.2, "0", ha="center", va="bottom", fontsize=8, bbox=LABEL_BOX)
    axes.set_ylabel("KL of the next token,\nvisual updates off (nats)")


def _background(axes: Any, profile: Profile) -> None:
    """Shades of the stages, dotted lines at the boundaries, whole layers on the x axis."""
    last = profile.model.num_layers
    for band in bands(profile):
        axes.axvspan(band.start, band.end, color=band.grey, zorder=0, linewidth=0)
    for layer, _ in marks(profile):
        axes.axvline(layer, color="black", linewidth=1, linestyle=(0, (1, 1.5)), zorder=1)
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_xticks(*layer_ticks(last))


def layer_ticks(last: int) -> tuple[list[int], list[str]]:
    """About a dozen layers, and the output."""
    step = next(step for step in (1, 2, 4, 8, 16, 32, 10**9) if last / step <= 14)
    layers = [layer for layer in range(0, last, step) if last - layer > 0.6 * step]
    return [*layers, last], [*map(str, layers), "out"]


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
        axes.plot([layer, layer], [0, row + 0.5], color="black", linewidth=1, linestyle=(0, (1, 1.5)), clip_on=False)
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
