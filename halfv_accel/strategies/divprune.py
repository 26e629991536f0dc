"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): a greedy maximum of the smallest distance among kept tokens.

The first pick is the token that is most distant from its nearest neighbour; each further one is the token that is most
distant from all picked ones (cosine distance of the projected visual features). So all but the first pick are farthest
points. The public code looks at the batch's first row only and takes the visual tokens from a fixed place on; here
every row is its own, wherever its pictures are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.strategies.farthest_points import farthest_points
from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import products
from halfv_accel.strategies.shared.greedy import directions

CHUNK = 2**24  # cosines of a row that are held at a time


@register("divprune")
@dataclass(frozen=True)
class DivPrune:
    """Max-min diversity; a smaller budget is a subset of a larger one."""

    needs: ClassVar[Needs] = Needs()
    separators: ClassVar[Separators] = "last"

    def select(self, view: View, budget: Tensor) -> Tensor:
        return most_diverse(view.states, view.present, budget)

    def flops(self, sizes: Sizes) -> int:
        return diverse_flops(sizes.candidates, sizes.kept, sizes.decoder.hidden)


def most_diverse(states: Tensor, present: Tensor, budget: Tensor) -> Tensor:
    """Mask [B, V] of each row's max-min diverse tokens, as many as the budget [B] says."""
    if not present.numel():
        return present
    first = torch.zeros_like(present).scatter(1, _most_distant(states, present), True)
    return farthest_points(states, present, first & present & (budget > 0)[:, None], budget)


def diverse_flops(candidates: int, kept: int, hidden: int) -> int:
    """Operations of `most_diverse` in one row."""
    growing = candidates * (candidates + 1) if kept > 1 else 0
    return 2 * hidden * (candidates**2 + growing)


def _most_distant(states: Tensor, present: Tensor) -> Tensor:
    """The token of each row that is most distant from its nearest neighbour: [B, 1].

    Two tokens that are nearest to each other tie, so a cosine must not depend on which of them is asked. Rounding may
    differ; therefore the larger of both counts.
    """
    vectors, width = directions(states), present.shape[1]
    nearest = torch.full(present.shape, -torch.inf, device=states.device)
    index = torch.arange(width, device=states.device)
    for part in index.split(max(1, CHUNK // width)):
        cosines = products(vectors[:, part], vectors.mT)
        cosines.masked_fill_(~present[:, None] | (part[:, None] == index), -torch.inf)
        cosines.masked_fill_(~present[:, part, None], -torch.inf)
        nearest[:, part] = torch.maximum(nearest[:, part], cosines.amax(dim=2))
        torch.maximum(nearest, cosines.amax(dim=1), out=nearest)
    return nearest.masked_fill_(~present, torch.inf).argmin(dim=1, keepdim=True)
