"""FasterVLM: the visual tokens that the vision tower's CLS token attends to most (Zhang et al., arXiv 2412.01818v1).

The score is the attention of the last but one layer, whose output is what the projector gets, mean over heads. Towers
without a CLS token are ranked by the attention that a token receives. The public code is the same for LLaVA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.ranking import top_k_mask
from halfv_accel.strategies.shared.vision_attention import attention_flops, attention_scores, check_vision_layer


@register("cls_attention")
@dataclass(frozen=True)
class ClsAttention:
    """Keep the tokens of the highest attention in the vision tower.

    Parameters
    ----------
    vision_layer : int
        The tower's layer; -2 is the last but one.
    """

    vision_layer: int = -2

    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        check_vision_layer(self.vision_layer)

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer),))

    def select(self, view: View, budget: Tensor) -> Tensor:
        return top_k_mask(attention_scores(view, self.vision_layer), view.present, budget)

    def flops(self, sizes: Sizes) -> int:
        return attention_flops(sizes)
