"""Farthest point sampling (HalfV Eq. 5): one at a time, the token that is most distant from all chosen ones.

Distances are taken between L2-normalised hidden states, where |u - v|^2 = 2 - 2 <u, v>. So "most distant from the
nearest chosen token" is "smallest of the largest cosines", and that is what the loop keeps.

As a strategy they have no seed: this is FPSPruner, a baseline of AdaVTP (Table 2 and Appendix C there).

On CUDA, a kernel does it (halfv_accel.kernels.farthest_points). Everywhere else it is the loop below. A pick needs the
cosines of its token with all others, and a product for each pick would be slow; so the loop prepares them for a pool,
the tokens that are most distant at the moment, and makes a new pool when a pick is not in it. Most picks are: whoever
is distant now is likely to be picked soon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from halfv_accel.kernels import triton_works
from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.precision import plain_float32

TABLE = 8192  # tokens; a table of all cosines takes 4 V^2 bytes a row
SMALL = 10**8  # products; a table of fewer is made sooner than a pool is found to be empty
POOL = 48  # larger ones hold more tokens that are never picked, smaller ones make slower products
ANCHORS = 1024  # anchors compared with all tokens at a time


@register("farthest_points")
@dataclass(frozen=True)
class FarthestPoints:
    """Farthest points from the row's first token on; a smaller budget is a subset of a larger one.

    The paper neither says which point is the initial one nor whether states are normalised. Here they are, as in
    HalfV.
    """

    needs: ClassVar[Needs] = Needs()
    separators: ClassVar[Separators] = "last"

    def select(self, view: View, budget: Tensor) -> Tensor:
        return farthest_points(view.states, view.present, torch.zeros_like(view.present), budget)

    def flops(self, sizes: Sizes) -> int:
        return 2 * sizes.decoder.hidden * sizes.candidates**2 if sizes.kept else 0


def farthest_points(states: Tensor, present: Tensor, anchors: Tensor, budget: Tensor) -> Tensor:
    """Grow the anchors to the budget by farthest point sampling, every row of the batch at once.

    Parameters
    ----------
    states : (B, V, H) Tensor
        Hidden states; normalised here, in float32.
    present : (B, V) bool Tensor
        Real tokens. Equal distances go to the lowest index.
    anchors : (B, V) bool Tensor
        Chosen already; may be empty, and then the first present token is the first point.
    budget : (B,) long Tensor
        Size of the result, anchors included.

    Returns
    -------
    (B, V) bool Tensor
    """
    with torch.autocast(states.device.type, enabled=False), plain_float32():
        if states.is_cuda and triton_works():
            from halfv_accel.kernels import farthest_points as kernel

            return kernel.farthest_points(states, present, anchors, budget)
        return _grow(F.normalize(states.float(), dim=-1), present, anchors & present, budget)


def _grow(directions: Tensor, present: Tensor, chosen: Tensor, budget: Tensor) -> Tensor:
    wanted = budget - chosen.sum(1)
    most = int(wanted.max()) if present.numel() else 0
    if most <= 0:
        return chosen
    if len(directions) > 1 and not _table_pays(directions, most):  # each row runs out of its pool at its own time
        rows = zip(directions.split(1), present.split(1), chosen.split(1), budget.split(1), strict=True)
        return torch.cat([_grow(*row) for row in rows])
    nearest = _largest_cosine(directions, chosen).masked_fill_(chosen | ~present, torch.inf)  # inf: not to be picked
    picks = (_picks_from_table if _table_pays(directions, most) else _picks_from_pools)(directions, nearest, most)
    counted = torch.arange(most, device=directions.device) < wanted[:, None]  # a row that was full has picked on
    added = torch.zeros_like(chosen, dtype=torch.int32).scatter_add_(1, picks, counted.int()) > 0
    return chosen | (added & present)


def _table_pays(directions: Tensor, picks: int) -> bool:
    """Whether to compare all tokens with all: at once they are few, or most of them will be picked."""
    width, hidden = directions.shape[1:]
    waits = directions.device.type != "cpu"  # a pool looks at each pick, and elsewhere that is to wait for the device
    return width <= TABLE and (waits or width * width * hidden <= SMALL or 2 * picks > width)


def _picks_from_table(directions: Tensor, nearest: Tensor, most: int) -> Tensor:
    """[B, most] tokens in the order of their picks. Changes `nearest`."""
    batch, width = nearest.shape
    table = _cosines(directions, directions)
    table.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # so that a pick takes itself out
    offset = width * torch.arange(batch, device=nearest.device)
    picks = []
    for _ in range(most):
        picks.append(nearest.argmin(dim=1))  # the lowest of equal ones
        torch.maximum(nearest, table.flatten(0, 1).index_select(0, picks[-1] + offset), out=nearest)
    return torch.stack(picks, dim=1)


def _picks_from_pools(directions: Tensor, nearest: Tensor, most: int) -> Tensor:
    """The same for one row: [1, most]."""
    nearest, directions, pool = nearest[0], directions[0], {}
    picks = []
    for _ in range(most):
        picks.append(int(nearest.argmin()))
        if picks[-1] not in pool:
            members = nearest.argsort(stable=True)[:POOL]  # in the order of the picks: the first is this one
            cosines = _cosines(directions[members], directions).scatter_(1, members[:, None], torch.inf)
            pool = dict(zip(members.tolist(), cosines.unbind(), strict=True))
        torch.maximum(nearest, pool[picks[-1]], out=nearest)
    return torch.tensor([picks], device=nearest.device)


def _largest_cosine(directions: Tensor, chosen: Tensor) -> Tensor:
    """Cosine between each token and the chosen one nearest to it: [B, V], -inf in rows that have chosen none."""
    nearest = torch.full(chosen.shape, -torch.inf, dtype=torch.float32, device=chosen.device)
    most = int(chosen.sum(1).max())
    order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    for part in order.split(ANCHORS, dim=1) if most else ():
        cosines = _cosines(directions.gather(1, part[..., None].expand(-1, -1, directions.shape[-1])), directions)
        cosines.masked_fill_(~chosen.gather(1, part)[..., None], -torch.inf)
        torch.maximum(nearest, cosines.amax(dim=1), out=nearest)
    return nearest


def _cosines(some: Tensor, directions: Tensor) -> Tensor:
    """A state that is not finite says nothing about the others."""
    return (some @ directions.mT).nan_to_num_(nan=-torch.inf)
