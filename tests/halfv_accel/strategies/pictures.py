"""Views whose tokens come from several pictures, crops or frames."""

from __future__ import annotations

import torch

from halfv_accel.strategies import Places
from tests.halfv_accel.strategies.views import random_view


def grid(picture, part, height, width, top=0, left=0):
    return [(picture, part, top + row, left + column) for row in range(height) for column in range(width)]


def cropped(picture, down, across, size=4, rows=0, columns=0):
    """A whole view, then `down` x `across` crops as LLaVA-NeXT packs them: row by row of what they make up.

    So many `rows` at top and bottom of that are cut off, and so many `columns` at both sides, which show no picture.
    """
    tokens = grid(picture, 0, size, size)
    for row in range(rows, down * size - rows):
        for column in range(columns, across * size - columns):
            part = 1 + row // size * across + column // size
            tokens.append((picture, part, row % size, column % size))
    return tokens


ROWS = {
    "one picture": grid(0, 0, 4, 5),
    "two pictures": grid(0, 0, 3, 3) + grid(1, 0, 4, 5),
    "2 x 2 crops": cropped(0, 2, 2),
    "1 x 2 crops, cut": cropped(0, 1, 2, rows=1),
    "1 x 2 crops, one row, and a picture": cropped(0, 1, 2, size=3, rows=1) + grid(1, 0, 5, 5),
    "2 x 3 crops, one row of each": cropped(0, 2, 3, rows=3),
    "3 x 3 crops, six cut off": cropped(0, 3, 3, size=3, columns=3),
    "2 x 2 crops, cut at the sides": cropped(0, 2, 2, columns=3),
    "3 x 1 crops": cropped(0, 3, 1),
    "crops and a picture": cropped(0, 1, 3, size=3) + grid(1, 0, 2, 2) + cropped(2, 2, 2, size=2),
    "frames": [token for frame in range(4) for token in grid(0, frame, 3, 3)],
    "nothing": [],
}


def pictured_view(names, seed=0, coarse=False):
    rows = [ROWS[name] for name in names]
    view = random_view([len(row) for row in rows], [3] * len(rows), seed=seed, coarse=coarse)
    fields = torch.full((4, *view.present.shape), -1)
    for index, row in enumerate(rows):
        if row:
            fields[:, index, : len(row)] = torch.tensor(row).T
    view.places = Places(*fields, torch.zeros_like(view.present), torch.zeros_like(view.present))
    return view
