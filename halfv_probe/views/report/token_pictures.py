"""Pictures of `overlays.TokenMap`: kept patches in colour, dropped ones greyed and hatched, anchors framed."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from halfv_probe.views.canvas import labelled_below
from halfv_probe.views.report.overlays import TokenMap

PIXELS = 336  # of the longer side, about
SMALLEST_CELL = 6
VEIL, HATCH, FRAME = 236, 170, (255, 212, 0)
LONGEST_STRIP_ROW = 48


def given_picture(tokens: TokenMap) -> bytes:
    """The picture as the model is given it, as PNG. Without certain geometry there is none to give."""
    if tokens.image is None or tokens.grid is None:
        raise ValueError("the geometry of these tokens is not known")
    return _png(np.asarray(_scaled(tokens.image, tokens.grid)))


def kept_picture(tokens: TokenMap, stage: int) -> bytes:
    """What is left after a stage, as PNG: on the picture if the geometry is certain, else a strip in reading order.

    Parameters
    ----------
    stage : int
        Index into ``tokens.stages``. Anchors are framed as far as they are still there.
    """
    kept = tokens.stages[stage].kept
    if tokens.image is not None and tokens.grid is not None:
        grid, picture = tokens.grid, np.asarray(_scaled(tokens.image, tokens.grid))
    else:
        columns = min(LONGEST_STRIP_ROW, max(1, math.ceil(math.sqrt(2 * len(kept)))))
        grid = (math.ceil(len(kept) / columns), columns)
        picture = np.full((grid[0] * _cell(grid), grid[1] * _cell(grid), 3), (40, 90, 150), dtype=np.uint8)
    cell, places = _cell(grid), grid[0] * grid[1]
    missing = places - len(kept)
    shown = np.pad(kept, (0, missing)).reshape(grid)
    framed = np.pad(tokens.anchors & kept, (0, missing)).reshape(grid)
    image = _framed(_veiled(picture, _blown_up(shown, cell)), framed, cell)
    image[_blown_up((np.arange(places) >= len(kept)).reshape(grid), cell)] = 255  # no tokens there
    return _png(image)


def draw_coverage(figure: Figure, tokens: TokenMap, plane: np.ndarray) -> None:
    """Visual tokens in the plane of their two main axes: anchors, kept for coverage, dropped (Figure 7, by PCA)."""
    kept = tokens.stages[0].kept
    groups = (
        ("dropped", ~kept, dict(marker="x", s=13, color="#9a9a9a")),
        ("kept for coverage", kept & ~tokens.anchors, dict(marker="o", s=26, facecolor="none", edgecolor="#10558c")),
        ("kept as anchor", tokens.anchors, dict(marker="^", s=42, facecolor="#f2b705", edgecolor="black")),
    )
    axes: Any = figure.subplots()
    for name, mask, style in groups:
        label = f"{name}: {int(mask.sum())}"
        axes.scatter(*plane[mask].T, label=label, linewidth=1.0, **style)
    axes.set(xlabel="first main axis", ylabel="second main axis", aspect="equal", adjustable="datalim")
    labelled_below(figure, axes.get_legend_handles_labels()[0], columns=3)


def _cell(grid: tuple[int, int]) -> int:
    """Pixels along a patch."""
    return max(SMALLEST_CELL, round(PIXELS / max(grid)))


def _scaled(image: Image.Image, grid: tuple[int, int]) -> Image.Image:
    cell = _cell(grid)
    return image.convert("RGB").resize((grid[1] * cell, grid[0] * cell), Image.Resampling.BICUBIC)


def _blown_up(mask: np.ndarray, cell: int) -> np.ndarray:
    return mask.repeat(cell, axis=0).repeat(cell, axis=1)


def _veiled(picture: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Dropped patches keep a trace of the picture under grey and diagonal lines; a dark line runs around the kept."""
    down, right = np.indices(kept.shape)
    hatched = (down + right) % 8 < 1
    grey = 0.18 * picture.mean(axis=2) + 0.82 * VEIL
    veil = np.where(hatched, HATCH, grey)
    image = np.where(kept[..., None], picture, veil[..., None]).astype(np.uint8)
    around = np.pad(kept, 1, mode="edge")
    inside = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    image[kept & ~inside] = 30
    return image


def _framed(image: np.ndarray, cells: np.ndarray, cell: int) -> np.ndarray:
    """A bright frame in each of these cells, dark on its inner side, so that it shows on any picture."""
    down, right = (index % cell for index in np.indices(image.shape[:2]))
    depth = np.minimum(np.minimum(down, right), np.minimum(cell - 1 - down, cell - 1 - right))
    wide = max(1, cell // 9)
    marked = _blown_up(cells, cell)
    image[marked & (depth < wide)] = FRAME
    image[marked & (depth == wide)] = 20
    return image


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", optimize=True)
    return content.getvalue()
