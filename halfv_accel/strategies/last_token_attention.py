"""Rank visual tokens by the attention that the last text token pays to them (HalfV §3.3, step 2; FastV).

The last token summarises the instruction, and one query against all visual keys costs one vector product per head,
whatever attention kernel the model uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halfv_accel.decoder import Decoder
from halfv_accel.strategies.ranking import top_k_mask
from halfv_accel.strategies.registry import View, register


@register("last_token_attention")
@dataclass(frozen=True)
class LastTokenAttention:
    """Keep the visual tokens that the last text token attends to most.

    Parameters
    ----------
    rotary : bool
        Position embedding on, as in SSR, or off, as for IVR's anchors (Appendix G.2, Table 8).
    """

    rotary: bool = True

    def select(self, view: View, budget: Tensor) -> Tensor:
        return top_k_mask(view.last_token_scores(rotary=self.rotary), view.present, budget)

    def flops(self, decoder: Decoder, candidates: int, kept: int) -> int:
        return decoder.last_token_flops(candidates, self.rotary)
