"""AnchorCover, HalfV's solver for intrinsic visual redundancy (§3.3, step 1; Eq. 4-6).

Relevance first: the tokens that the last text token attends to most, scored without position embedding, become
anchors. Coverage second: farthest point sampling (Eq. 5) adds, one at a time, the token that is most distant from all
chosen ones, until the budget is full.

Distances are taken between L2-normalised hidden states, where |u - v|^2 = 2 - 2 <u, v>. So "most distant from the
nearest chosen token" is "smallest of the largest cosines", and that is what the loop keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from halfv_accel.budget import floor_share
from halfv_accel.decoder import Decoder
from halfv_accel.errors import HalfVError
from halfv_accel.strategies.ranking import top_k_mask
from halfv_accel.strategies.registry import View, register

TABLE_LIMIT = 8192  # above this many tokens, a table of all cosines (4 V^2 bytes a row) costs more than it saves


@register("anchor_cover")
@dataclass(frozen=True)
class AnchorCover:
    """Semantic anchors, then farthest points.

    Parameters
    ----------
    anchor_ratio : float
        R_S: the share of the budget that goes to anchors, rounded down. With no anchor the first visual token is the
        first point.
    """

    anchor_ratio: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.anchor_ratio, bool) or not isinstance(self.anchor_ratio, (int, float)):
            raise HalfVError(f"anchor_ratio is {self.anchor_ratio!r}: give a number in [0, 1]")
        if not 0 <= self.anchor_ratio <= 1:
            raise HalfVError(f"anchor_ratio is {self.anchor_ratio!r}: give a number in [0, 1]")

    def select(self, view: View, budget: Tensor) -> Tensor:
        anchors = torch.floor(budget.double() * self.anchor_ratio + 1e-9).long()  # see floor_share
        scores = view.last_token_scores(rotary=False)
        return farthest_points(view.states, view.present, top_k_mask(scores, view.present, anchors), budget)

    def flops(self, decoder: Decoder, candidates: int, kept: int) -> int:
        cosines = candidates * (candidates + floor_share(kept, self.anchor_ratio))
        return decoder.last_token_flops(candidates) + 2 * cosines * decoder.hidden


def farthest_points(states: Tensor, present: Tensor, anchors: Tensor, budget: Tensor) -> Tensor:
    """Grow the anchors to the budget by farthest point sampling (Eq. 5), every row of the batch at once.

    Parameters
    ----------
    states : (B, V, H) Tensor
        Hidden states; normalised here, in float32.
    present : (B, V) bool Tensor
        Real tokens. Equal distances go to the lowest index.
    anchors : (B, V) bool Tensor
        Chosen already; may be empty.
    budget : (B,) long Tensor
        Size of the result, anchors included.

    Returns
    -------
    (B, V) bool Tensor
    """
    with torch.autocast(states.device.type, enabled=False):  # it would compare in half precision
        return _grow(F.normalize(states.float(), dim=-1), present, anchors & present, budget)


def _grow(directions: Tensor, present: Tensor, chosen: Tensor, budget: Tensor) -> Tensor:
    table = directions @ directions.mT if directions.shape[1] <= TABLE_LIMIT else None
    nearest = _largest_cosine(directions, chosen)  # [B, V]: to the nearest chosen token
    rows = torch.arange(directions.shape[0], device=directions.device)
    wanted = budget - chosen.sum(1)
    for step in range(int(wanted.max())):
        pick = nearest.masked_fill(chosen | ~present, torch.inf).argmin(dim=1)
        chosen[rows, pick] |= wanted > step
        cosine = table[rows, pick] if table is not None else (directions @ directions[rows, pick, :, None])[..., 0]
        nearest = torch.maximum(nearest, cosine)
    return chosen & present


def _largest_cosine(directions: Tensor, chosen: Tensor) -> Tensor:
    """Cosine between each token and the chosen one nearest to it: [B, V], -inf in rows that have chosen none."""
    most = int(chosen.sum(1).max())
    if most == 0:
        return torch.full(chosen.shape, -torch.inf, device=chosen.device)
    order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    anchors = directions.gather(1, order[..., None].expand(-1, -1, directions.shape[-1]))  # [B, A, H]
    cosines = (directions @ anchors.mT).masked_fill(~chosen.gather(1, order)[:, None, :], -torch.inf)
    return cosines.amax(dim=-1)
