"""How much attention has to say, by the picture's effective rank (AdaVTP, Section 4.3).

Hybrid methods mix tokens of high attention with diverse ones in fixed shares. AdaVTP "maps erank to a linear weighting
function", so that simple pictures get more of the first and complex ones more of the second, and gives no formula. Here
the share of attention is `important` for a picture of average rank, and falls by `slope` for each average above it:

    share = important + slope (1 - erank / erank_avg), within [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.shared.effective_rank import check_rank_average, effective_rank, effective_rank_flops
from halfv_accel.strategies.shared.ranking import top_k_mask
from halfv_accel.strategies.shared.shares import check_share
from halfv_accel.strategies.shared.vision_attention import attention_flops, attention_scores, check_vision_layer


@dataclass(frozen=True)
class ErankShare:
    """What the mixtures have in common.

    Parameters
    ----------
    important : float
        Share of the budget that goes by attention in a picture of average rank. A half in VisPruner.
    slope : float
        How fast that share falls; below 0 is the paper's "inverse" (Table 5), 0 the method as it was. No source.
    erank_avg : float
        Mean effective rank of pictures in front of this model's decoder, see `AdaVTP`.
    vision_layer : int
        The tower's layer whose attention counts.
    """

    important: float = 0.5
    slope: float = 0.5
    erank_avg: float = 94.87
    vision_layer: int = -2

    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        check_share("important", self.important)
        check_rank_average(self.erank_avg)
        check_vision_layer(self.vision_layer)
        number = isinstance(self.slope, (int, float)) and not isinstance(self.slope, bool)
        if not number or not abs(self.slope) < float("inf"):
            raise HalfVError(f"slope is {self.slope!r}: give a number, such as 0.5")

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer),))

    def important_tokens(self, view: View, budget: Tensor) -> Tensor:
        """Those of the highest attention, as many as the picture's effective rank leaves to it: [B, V] bool."""
        richness = effective_rank(view.states, view.present) / self.erank_avg
        share = (self.important + self.slope * (1 - richness)).clamp(0, 1)
        many = torch.floor(budget.double() * share + 1e-9).long()  # see floor_share
        return top_k_mask(self.attention(view), view.present, many)

    def attention(self, view: View) -> Tensor:
        """Of each token, in the tower: [B, V] float32, all finite."""
        return attention_scores(view, self.vision_layer).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def share_flops(self, sizes: Sizes, attention: bool = True, rank: bool = True) -> int:
        """Operations of `important_tokens`, or one part of them."""
        ranks = effective_rank_flops(sizes.candidates, sizes.decoder.hidden)
        return attention * attention_flops(sizes) + rank * ranks
