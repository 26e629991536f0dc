"""AnchorCover, HalfV's solver for intrinsic visual redundancy (§3.3, step 1; Eq. 4-6).

Relevance first: the tokens that the last text token attends to most, scored without position embedding, become
anchors. Coverage second: farthest point sampling (Eq. 5) adds, one at a time, the token that is most distant from all
chosen ones, until the budget is full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfv_accel.budget import floor_share, floor_shares
from halfv_accel.strategies.farthest_points import farthest_points
from halfv_accel.strategies.protocol import Needs, ScoredBy, Sizes, View, check_scored_by
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.ranking import top_k_mask
from halfv_accel.strategies.shared.shares import check_share


@register("anchor_cover")
@dataclass(frozen=True)
class AnchorCover:
    """Semantic anchors, then farthest points.

    Parameters
    ----------
    anchor_ratio : float
        R_S: the share of the budget that goes to anchors, rounded down, but at least one where R_S > 0: a small budget
        never leaves the text without a say. With R_S = 0 the first visual token is the first point.
    scored_by : {"previous", "own"}
        Whose attention is the relevance: the layer's before the stage (the public code), or the stage's own layer's.
    """

    anchor_ratio: float = 0.1
    scored_by: ScoredBy = "previous"

    def __post_init__(self) -> None:
        check_share("anchor_ratio", self.anchor_ratio)
        check_scored_by(self.scored_by)

    @property
    def needs(self) -> Needs:
        return Needs(before=self.scored_by == "previous")

    def select(self, view: View, budget: Tensor) -> Tensor:
        anchors = floor_shares(budget, self.anchor_ratio)
        if self.anchor_ratio > 0:
            anchors = torch.maximum(anchors, budget.clamp(max=1))
        scores = view.last_token_scores(rotary=False, scored_by=self.scored_by)
        return farthest_points(view.states, view.present, top_k_mask(scores, view.present, anchors), budget)

    def flops(self, sizes: Sizes) -> int:
        anchors = max(floor_share(sizes.kept, self.anchor_ratio), min(sizes.kept, 1) if self.anchor_ratio > 0 else 0)
        cosines = sizes.candidates * (sizes.candidates + anchors)
        scores = sizes.decoder.last_token_flops(sizes.candidates, rotary=False)
        return scores + 2 * cosines * sizes.decoder.hidden
