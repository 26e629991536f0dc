"""What all pictures share: how a figure becomes a file, where its legend stands, how long names and deep axes fit."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from halfv_accel import HalfVError
from halfv_accel.files import check_writable, write_atomically
from halfv_probe.views.tables import csv

KINDS = ("png", "svg", "pdf")
WIDE, NARROW = 8.0, 4.6  # inches: a page of its own, and a column that a telephone can show
# What a user's own settings must not change: formulas in LaTeX need programs, and random ids make no two files alike.
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.usetex": False,
    "svg.hashsalt": "halfv",
    "svg.fonttype": "path",
}


def save(path: Path | str, numbers: pd.DataFrame, draw: Callable[[Figure], None], inches: tuple[float, float]) -> Path:
    """Write a picture, and its numbers beside it as CSV.

    Parameters
    ----------
    path : path
        PNG, PDF or SVG; the ending decides. Written in full or not at all.
    numbers : DataFrame
    draw : callable
        Given a new figure of (width, height) `inches`.

    Returns
    -------
    Path
        The CSV: as `path`, but for the ending.

    Raises
    ------
    HalfVError
        If the ending is another one, or a file cannot be written; then neither is.
    """
    path = Path(path)
    check_writable(path)
    kind, table = kind_of(path), path.with_suffix(".csv")
    check_writable(table)
    write_atomically(path, render(draw, inches, kind))
    write_atomically(table, csv(numbers).encode())
    return table


def kind_of(path: Path | str) -> str:
    """The kind of picture that a path's ending asks for."""
    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in KINDS:
        raise HalfVError(f"{path} ends in {kind or 'nothing'}: name a picture that ends in .png, .pdf or .svg")
    return kind


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


def labelled_below(figure: Figure, handles: Iterable[Any], columns: int) -> None:
    """One legend under all axes, where it covers nothing; of entries with one label the first."""
    entries: dict[str, Any] = {}
    for handle in handles:
        entries.setdefault(handle.get_label(), handle)
    if entries:
        figure.legend(
            handles=list(entries.values()), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
        )


def middle_cut(text: str, limit: int) -> str:
    """A long text without its middle: of a path, the end tells most."""
    keep = (limit - 1) // 3
    return text if len(text) <= limit else f"{text[:keep]}…{text[keep + 1 - limit :]}"


def literal(text: str) -> str:
    """A text for a label: a dollar sign would begin a formula there."""
    return text.replace("$", r"\$")


def layer_ticks(last: int) -> tuple[list[int], list[str]]:
    """About a dozen layers, and the output."""
    step = next(step for step in (1, 2, 4, 8, 16, 32, 10**9) if last / step <= 14)
    layers = [layer for layer in range(0, last, step) if last - layer > 0.6 * step]
    return [*layers, last], [*map(str, layers), "out"]
