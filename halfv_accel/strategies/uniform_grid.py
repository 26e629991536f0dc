"""Tokens evenly spaced over the grid of each picture: what a choice must beat that looks at nothing.

A part of a picture is cut into bands of rows, about as high as the kept tokens will be apart, and each band into
stretches of equally many tokens, column by column, one for each token that it keeps: the one nearest to the middle of
the stretch. Where numbers fit, that is a regular lattice; on any other grid, also one with holes, it is near to one.
Parts and bands share the budget by their numbers of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.dividing import pictures_and_parts


@register("uniform_grid")
@dataclass(frozen=True)
class UniformGrid:
    """A choice that depends on the places of the tokens and on nothing beside them."""

    needs: ClassVar[Needs] = Needs(structure=True)
    separators: ClassVar[Separators] = "last"

    def select(self, view: View, budget: Tensor) -> Tensor:
        if not view.present.numel():
            return view.present
        row, column = view.places.row, view.places.column
        groups, sizes = pictures_and_parts(view.places, view.present)
        groups = groups.masked_fill(~view.present, sizes[0].numel())  # padding comes last
        band = _bands(groups, row, sizes[0].numel() + 1, budget[:, None], view.present.sum(1, keepdim=True))
        order = row.argsort(dim=1, stable=True)
        for key in (column, band, groups):
            order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))

        groups, band, row, column, real = (x.gather(1, order) for x in (groups, band, row, column, view.present))
        stretch = _stretches(groups, band, real, budget)
        off = sum((2 * x - _least(x, stretch) + _least(-x, stretch)).abs() for x in (row, column))
        key = off * order.shape[1] + order  # of those that are equally near, the earlier
        middle = (key == _least(key, stretch)) & (stretch < order.shape[1])
        return torch.zeros_like(view.present).scatter(1, order, middle)

    def flops(self, sizes: Sizes) -> int:
        return 0


def _bands(groups: Tensor, row: Tensor, many: int, kept: Tensor, count: Tensor) -> Tensor:
    """Band of each token in its part: [B, V]. A band is about sqrt(count / kept) rows high."""
    top = _least(row, groups, many)
    height = -_least(-row, groups, many) - top + 1
    twice = (4 * height**2 * kept // count.clamp(min=1)).double().sqrt().long()  # whole numbers, so never off by one
    return (row - top) * ((twice + 1) // 2).clamp(min=1) // height


def _stretches(groups: Tensor, band: Tensor, real: Tensor, budget: Tensor) -> Tensor:
    """Stretch of each token, from 0 to the budget, in the order of bands: [B, V]; V where a token has none."""
    width = real.shape[1]
    begins = torch.ones_like(real)
    begins[:, 1:] = (groups.diff(dim=1) != 0) | (band.diff(dim=1) != 0)
    run = begins.cumsum(1) - 1
    sizes = torch.zeros_like(run).scatter_add_(1, run, real.long())
    n, m = real.sum(1, keepdim=True).clamp(min=1), budget[:, None]
    end = sizes.cumsum(1)
    first, last = (
        (2 * x * m + n) // (2 * n) for x in (end - sizes, end)
    )  # shares of the budget, rounded as they add up
    size, start, first, kept = (x.gather(1, run) for x in (sizes, end - sizes, first, last - first))
    stretch = first + (torch.arange(width, device=run.device) - start) * kept // size.clamp(min=1)
    return torch.where(real & (kept > 0), stretch, width)


def _least(values: Tensor, of: Tensor, many: int | None = None) -> Tensor:
    """For each token, the least value of those that share its number in `of`."""
    many = of.shape[1] + 1 if many is None else many
    found = torch.full((len(of), many), torch.iinfo(torch.long).max, device=of.device)
    return found.scatter_reduce_(1, of, values, "amin").gather(1, of)
