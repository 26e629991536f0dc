"""Rank visual tokens by the attention that the last text token pays to them (HalfV §3.3, step 2; FastV).

The last token summarises the instruction, and one query against all visual keys costs one vector product per head,
whatever attention kernel the model uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halfv_accel.strategies.protocol import Needs, ScoredBy, Sizes, View, check_scored_by
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.ranking import top_k_mask


@register("last_token_attention")
@dataclass(frozen=True)
class LastTokenAttention:
    """Keep the visual tokens that the last text token attends to most.

    Parameters
    ----------
    rotary : bool
        Position embedding on, as in SSR, or off, as for IVR's anchors (Appendix G.2, Table 8).
    scored_by : {"previous", "own"}
        Whose attention ranks: the layer's before the stage (the public code), or the stage's own layer's.
    """

    rotary: bool = True
    scored_by: ScoredBy = "previous"

    def __post_init__(self) -> None:
        check_scored_by(self.scored_by)

    @property
    def needs(self) -> Needs:
        return Needs(before=self.scored_by == "previous")

    def select(self, view: View, budget: Tensor) -> Tensor:
        return top_k_mask(view.last_token_scores(self.rotary, self.scored_by), view.present, budget)

    def flops(self, sizes: Sizes) -> int:
        return sizes.decoder.last_token_flops(sizes.candidates, self.rotary)
