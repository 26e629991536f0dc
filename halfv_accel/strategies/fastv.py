"""FastV (Chen et al., 2024, arXiv 2403.06764): the last text token's attention, its softmax over all it sees.

Where `last_token_attention` shares the attention among the visual tokens alone, as HalfV does, here each head also
counts what it gives to the text: a head that hardly looks at the picture hardly has a say.

FastV scores by the layer before the stage, in the paper and in the public code. PyramidDrop (Xing et al.,
2024, arXiv 2410.17247) is the same choice in several stages, scored by the stage's own layer. InfoPrune's second stage
(Eq. 9) is the same choice once, in the middle: behind its layer K, counted from 0 (15 of LLaVA's 32, 13 of
Qwen2.5-VL's 28, Appendix B), so a stage that goes by the layer before it acts on K + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halfv_accel.strategies.protocol import Needs, ScoredBy, Sizes, View, check_scored_by
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.ranking import top_k_mask


@register("fastv")
@dataclass(frozen=True)
class FastV:
    """Keep the visual tokens that the last text token attends to most, mean over heads.

    Parameters
    ----------
    scored_by : {"previous", "own"}
        Whose attention ranks: the layer's before the stage (FastV), or the stage's own layer's (PyramidDrop).
    """

    scored_by: ScoredBy = "previous"

    def __post_init__(self) -> None:
        check_scored_by(self.scored_by)

    @property
    def needs(self) -> Needs:
        return Needs(before=self.scored_by == "previous")

    def select(self, view: View, budget: Tensor) -> Tensor:
        return top_k_mask(view.text_attention(scored_by=self.scored_by).mean(1), view.present, budget)

    def flops(self, sizes: Sizes) -> int:
        return sizes.text_attention_flops(1)
