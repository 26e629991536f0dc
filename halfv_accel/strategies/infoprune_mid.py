"""InfoPrune, stage 2: one cut in the middle of the language model (Section 3.2, Eq. 9).

By then the visual evidence has flowed into the text, and the tokens stay to which the last text token attends most, on
the mean over heads. The cut is behind layer K, counted from 0: K = 15 of LLaVA's 32, "the 16th layer", and 13 of
Qwen2.5-VL's 28 (Appendix B). So a stage that goes by the layer before it acts on K + 1, in the middle of both.

Where the paper contradicts itself: K is detected by semantic convergence (abstract), or predefined (Section 3.2 and
Appendix H; Table 7 prefers 17 for Qwen2.5-VL). The saliency flow of Eq. 4-5 asks for gradients: it shows when evidence
has flowed, and does not rank. R2 is called a pruning ratio and is what stays of stage 1's tokens (Table 4); a stage's
retention is of the original ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halfv_accel.strategies.protocol import Needs, ScoredBy, Sizes, View, check_scored_by
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.ranking import top_k_mask


@register("infoprune_mid")
@dataclass(frozen=True)
class InfoPruneMid:
    """Keep the visual tokens that the last text token attends to most, among all that it sees.

    Parameters
    ----------
    scored_by : {"previous", "own"}
        Whose attention ranks: the layer's before the stage, K of the paper, or the stage's own layer's.
    """

    scored_by: ScoredBy = "previous"

    def __post_init__(self) -> None:
        check_scored_by(self.scored_by)

    @property
    def needs(self) -> Needs:
        return Needs(before=self.scored_by == "previous")

    def select(self, view: View, budget: Tensor) -> Tensor:
        return top_k_mask(view.text_attention(scored_by=self.scored_by).mean(dim=1), view.present, budget)

    def flops(self, sizes: Sizes) -> int:
        return sizes.text_attention_flops(1)
