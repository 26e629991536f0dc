"""Names beside points, so that none covers another, a point or the edge: a greedy search outwards from its point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.text import Text
from matplotlib.transforms import Bbox

DIRECTIONS = (90, 45, 135, 0, 180, 270, 315, 225, 67, 113, 22, 158, 247, 293, 338, 202)  # degrees, preferred first
DISTANCES = (9, 16, 26, 38, 52, 68, 86, 106, 128)  # points
LEADER = dict(arrowstyle="-", color="#777777", linewidth=0.6, shrinkA=0, shrinkB=3)


def place_labels(
    axes: Any,
    names: Sequence[tuple[float, float, str]],
    occupied: Sequence[tuple[float, float]],
    size: float = 7,
) -> list[Any]:
    """Write each name as near to its point as there is room, joined by a thin line; one without room is left out.

    Parameters
    ----------
    axes : matplotlib axes
        With final limits: where there is room is asked now.
    names : sequence of (x, y, text)
        Data coordinates; the first have the choice.
    occupied : sequence of (x, y)
        Points that no name may cover.
    size : float
        Of the letters, in points.

    Returns
    -------
    list of annotations
    """
    figure = axes.figure
    figure.draw_without_rendering()
    pixel = figure.dpi / 72
    room = axes.get_window_extent().padded(-2 * pixel)
    taken = [_around(axes.transData.transform(point), 3 * pixel) for point in occupied]
    placed = []
    for x, y, text in names:
        how = dict(xytext=(0, 0), textcoords="offset points", fontsize=size, arrowprops=dict(LEADER), zorder=6)
        label = axes.annotate(text, (x, y), **how)
        for shift, across, along in _places():
            label.set(position=shift, ha=across, va=along)
            label.update_positions(figure.canvas.get_renderer())
            box = _text_box(label, figure).padded(1.5 * pixel)
            if _inside(box, room) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                placed.append(label)
                break
        else:
            label.remove()
    return placed


def _text_box(label: Any, figure: Any) -> Bbox:
    """Of the words, without the line to the point."""
    return Text.get_window_extent(label, figure.canvas.get_renderer())


def _places() -> Iterator[tuple[tuple[float, float], str, str]]:
    """Offsets in points, the nearest first, each with the side of the text that is there."""
    for distance in DISTANCES:
        for degrees in DIRECTIONS:
            right, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            across = "left" if right > 0.3 else "right" if right < -0.3 else "center"
            along = "bottom" if up > 0.3 else "top" if up < -0.3 else "center"
            yield (distance * right, distance * up), across, along


def _around(point: Any, reach: float) -> Bbox:
    return Bbox.from_extents(point[0] - reach, point[1] - reach, point[0] + reach, point[1] + reach)


def _inside(box: Bbox, room: Bbox) -> bool:
    return box.x0 >= room.x0 and box.x1 <= room.x1 and box.y0 >= room.y0 and box.y1 <= room.y1
