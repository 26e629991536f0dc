"""FitPrune (Ye et al., 2024, arXiv 2409.10197): drop what neither the text nor the rest of the picture looks at.

A token's score is the attention that it receives from the text times the attention that it receives from the visual
tokens, each of the head that gives it most. How many go at which layer is a calibration's to say (`halfv_probe`):
FitPrune drops a few at nearly every layer.

The public code takes the largest head for every single query, before the mean over queries; that needs the dense map of
all heads. Here the mean over queries comes first. The code's tables of counts are for LLaVA with 576 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halfv_accel.strategies.protocol import Needs, ScoredBy, Sizes, View, check_scored_by
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.ranking import top_k_mask


@register("fitprune")
@dataclass(frozen=True)
class FitPrune:
    """Keep the visual tokens with the largest (text to image) x (image to image) attention.

    Parameters
    ----------
    scored_by : {"previous", "own"}
        Whose attention ranks. FitPrune drops inside a layer, behind its attention; "previous" is that layer.
    """

    scored_by: ScoredBy = "previous"

    def __post_init__(self) -> None:
        check_scored_by(self.scored_by)

    @property
    def needs(self) -> Needs:
        return Needs(before=self.scored_by == "previous")

    def select(self, view: View, budget: Tensor) -> Tensor:
        from_text = view.text_attention(view.text_present, self.scored_by).amax(1)
        from_picture = view.visual_attention(self.scored_by).amax(1)
        return top_k_mask(from_text * from_picture, view.present, budget)

    def flops(self, sizes: Sizes) -> int:
        return sizes.text_attention_flops(sizes.text) + sizes.visual_attention_flops()
