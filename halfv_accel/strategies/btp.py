"""BTP, Balanced Token Pruning (Li et al., 2025, arXiv 2505.22038): from diversity in early stages to attention later.

Early stages must keep what later layers will look at, and nobody knows yet what that is: diversity. Late stages keep
what their own layer looks at: attention. A stage's shares say how much of each:

1. seeds spread over the picture (spatial initialisation: farthest points by Manhattan distance);
2. the tokens that the last text token attends to most, where early tokens go first (attention rebalancing: position
   embedding favours what stands near the text);
3. farthest points of the hidden states, seen from all of these, until the budget is full.

The public code for LLaVA fixes the seeds for 24 x 24 tokens, draws diverse tokens a second time from scratch, and
unites the three sets, which may overlap (it then fills up) or exceed the budget (it prints "Bug!"). Here each part
takes from what the parts before it left, as in the public code for Qwen2.5-VL. Its layers are counted from 1, ours
from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfv_accel.budget import floor_share, floor_shares
from halfv_accel.errors import HalfVError
from halfv_accel.strategies.farthest_points import farthest_points
from halfv_accel.strategies.protocol import Needs, Places, ScoredBy, Sizes, View, check_scored_by
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.ranking import ranks, top_k_mask
from halfv_accel.strategies.shared.shares import check_share


@register("btp")
@dataclass(frozen=True)
class BTP:
    """Spatial seeds, attention, and farthest points for the rest. The defaults are those of the first stage.

    Parameters
    ----------
    spatial, attention : float
        Shares of the budget, rounded down; together at most 1. What they leave is chosen by diversity.
    widen : float
        How far rebalancing looks, at least 1: among the `widen` times as many tokens with the most attention, those
        in the first `budget` places of the row go first. 1 is attention alone.
    scored_by : {"previous", "own"}
        Whose attention: the layer's before the stage (the public code), or the stage's own layer's.
    """

    spatial: float = 0.5
    attention: float = 0.3
    widen: float = 3.7
    scored_by: ScoredBy = "previous"

    def __post_init__(self) -> None:
        check_share("spatial", self.spatial)
        check_share("attention", self.attention)
        check_scored_by(self.scored_by)
        if self.spatial + self.attention > 1 + 1e-9:
            raise HalfVError(f"spatial and attention are {self.spatial} and {self.attention}: give at most 1 together")
        if isinstance(self.widen, bool) or not isinstance(self.widen, (int, float)) or not 1 <= self.widen < 1e6:
            raise HalfVError(f"widen is {self.widen!r}: give a number, at least 1")

    @property
    def needs(self) -> Needs:
        return Needs(before=self.attention > 0 and self.scored_by == "previous", structure=self.spatial > 0)

    def select(self, view: View, budget: Tensor) -> Tensor:
        chosen, wanted = torch.zeros_like(view.present), floor_shares(budget, self.spatial)
        if self.spatial > 0:
            chosen = spread(view.places, view.present, wanted)
        if self.attention > 0:
            wanted = wanted + floor_shares(budget, self.attention) - chosen.sum(1)  # separators are no spatial seeds
            scores = view.text_attention(scored_by=self.scored_by).mean(1)
            chosen = chosen | self._early_first(scores, view.present & ~chosen, wanted, budget)
        return farthest_points(view.states, view.present, chosen, budget)

    def flops(self, sizes: Sizes) -> int:
        seeds = floor_share(sizes.kept, self.spatial) + floor_share(sizes.kept, self.attention)
        cosines = sizes.candidates * (sizes.candidates + seeds) if seeds < sizes.kept else 0
        attention = sizes.text_attention_flops(1) if self.attention > 0 else 0
        return attention + 2 * cosines * sizes.decoder.hidden

    def _early_first(self, scores: Tensor, candidates: Tensor, wanted: Tensor, budget: Tensor) -> Tensor:
        width = scores.shape[1]
        ranked = ranks(scores, candidates)
        behind = ranked >= torch.floor(wanted.double() * self.widen + 1e-9)[:, None]
        late = torch.arange(width, device=scores.device) >= budget[:, None]
        return top_k_mask(-(ranked + width * late + 2 * width * behind).double(), candidates, wanted)


def spread(places: Places, present: Tensor, counts: Tensor) -> Tensor:
    """Farthest points of the grid, by Manhattan distance; parts and pictures are infinitely far from one another.

    Parameters
    ----------
    present : (B, V) bool Tensor
    counts : (B,) long Tensor
        How many to choose; fewer where fewer have a place in a grid. The first token comes first, ties to the earlier.

    Returns
    -------
    (B, V) bool Tensor
    """
    free = present & ~places.separator
    chosen = torch.zeros_like(present)
    counts = torch.minimum(counts, free.sum(1))
    nearest = torch.full(present.shape, torch.inf, device=present.device)
    for number in range(int(counts.max()) if present.numel() else 0):
        pick = nearest.masked_fill(~free, -torch.inf).argmax(dim=1, keepdim=True)  # the first of equal ones
        here = {name: value.gather(1, pick) for name, value in vars(places).items()}
        distance = (places.row - here["row"]).abs() + (places.column - here["column"]).abs()
        elsewhere = (places.picture != here["picture"]) | (places.part != here["part"])
        nearest = torch.minimum(nearest, distance.float().masked_fill(elsewhere, torch.inf))
        taken = torch.zeros_like(chosen).scatter(1, pick, (number < counts)[:, None])
        chosen, free = chosen | taken, free & ~taken
    return chosen
