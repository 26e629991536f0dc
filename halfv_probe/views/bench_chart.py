"""Where the time to the first token goes, and what a token costs after it: one bar a variant, one row a batch.

Readable without colours: parts of a bar differ in hatch and grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from halfv_accel.bench.results import Comparison, Variant
from halfv_accel.files import check_writable, write_atomically
from halfv_probe.views.canvas import WIDE, kind_of, labelled_below, middle_cut, render

PARTS: dict[str, dict[str, Any]] = {
    "vision encoder": dict(facecolor="white", hatch="///"),
    "LLM prefill": dict(facecolor="#8fb3d1"),
    "selection": dict(facecolor="black"),
    "other": dict(facecolor="#e4e4e4", hatch="..."),
}
EDGE = dict(edgecolor="black", linewidth=0.6)


def bench_chart(comparisons: Sequence[Comparison], title: str, path: Path | str) -> None:
    """Draw medians of all variants; whiskers are interquartile ranges.

    Parameters
    ----------
    comparisons : sequence of Comparison
        One for each batch size.
    path : path
        PNG, PDF or SVG; the ending decides. Written in full or not at all.

    Raises
    ------
    HalfVError
        If the ending is another one, or the file cannot be written.
    """
    kind = check_chart_path(path)
    inches = (WIDE, 1.3 + sum(1.0 + 0.34 * len(comparison.variants) for comparison in comparisons))
    write_atomically(path, render(lambda figure: draw_bench(figure, comparisons, title), inches, kind))


def check_chart_path(path: Path | str) -> str:
    """The kind of picture that a path's ending asks for; refuses, before long work, what could not be written."""
    kind = kind_of(path)
    check_writable(path)
    return kind


def draw_bench(figure: Figure, comparisons: Sequence[Comparison], title: str) -> None:
    """The picture of `bench_chart`."""
    figure.suptitle(middle_cut(title, 90), fontsize=11, parse_math=False)
    heights = [len(comparison.variants) + 1 for comparison in comparisons]
    rows = figure.subplots(len(comparisons), 2, squeeze=False, width_ratios=[2, 1], height_ratios=heights)
    for (left, right), comparison in zip(rows, comparisons, strict=True):
        _first_token(left, comparison)
        _decode(right, comparison)
    labelled_below(figure, rows[0, 0].get_legend_handles_labels()[0], columns=len(PARTS))


def parts(variant: Variant) -> dict[str, float]:
    """Milliseconds of each part of the time to the first token, from medians: they add up to its median."""
    vision, prefill, selection, ttft = (
        _median(variant, name) for name in ("vision_ms", "prefill_ms", "selection_ms", "ttft_ms")
    )
    rest = max(0.0, ttft - vision - prefill)  # medians of parts may add up to more than the whole's
    values = (vision, max(0.0, prefill - selection), selection, rest)
    return dict(zip(PARTS, values, strict=True))


def _first_token(axes: Any, comparison: Comparison) -> None:
    names = [variant.name for variant in comparison.variants]
    left = [0.0] * len(names)
    for part, style in PARTS.items():
        widths = [parts(variant)[part] for variant in comparison.variants]
        axes.barh(range(len(names)), widths, left=left, label=part, height=0.7, **style, **EDGE)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _whiskers(axes, comparison, "ttft_ms", left)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("time to first token (ms)")
    axes.set_title(comparison.headline, fontsize=9, loc="left")


def _decode(axes: Any, comparison: Comparison) -> None:
    times = [_median(variant, "decode_ms") for variant in comparison.variants]
    axes.barh(range(len(times)), times, height=0.7, facecolor="#8fb3d1", **EDGE)
    _whiskers(axes, comparison, "decode_ms", times)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlabel("decode per token (ms)")


def _whiskers(axes: Any, comparison: Comparison, quantity: str, ends: Sequence[float]) -> None:
    """Half the interquartile range on either side."""
    found = [variant.quantities[quantity] for variant in comparison.variants]
    spread = [0.0 if value is None else value.iqr / 2 for value in found]
    axes.errorbar(ends, range(len(ends)), xerr=spread, fmt="none", ecolor="black", elinewidth=1, capsize=3)


def _median(variant: Variant, quantity: str) -> float:
    found = variant.quantities[quantity]
    return 0.0 if found is None else found.median
