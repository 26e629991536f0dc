"""AdaVTP (Section 4.3, Eq. 6): by attention, without what is too similar, the more so the richer the picture.

Tokens are taken in the order of the vision tower's attention; each removes the tokens that are nearer to it than
tau_i = order_i x (erank / erank_avg) x 0.01, at most tau_max (cosine distance; order_i is its rank by attention, from
1). Should all others be removed before the budget is full, the highest attention among them fills it.

Where the paper leaves something open or contradicts itself: tau_max has no value; 0.25 is best for complex pictures in
Table 12 (POPE), though not for simple ones. The mean effective rank of LLaVA's training set is not told either; 94.87
is MME's on LLaVA-1.5-7B (Appendix D; 94.86 in Appendix E). Section 4.3 argues with attention entropy and Eq. 6 takes
effective rank, since both do as well (Table 11). A low threshold is called strict, but removes less. "Table 5" of
Section 5 is Table 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.effective_rank import check_rank_average, effective_rank, effective_rank_flops
from halfv_accel.strategies.shared.greedy import compared, directions, filled, greedy_picks, most_of
from halfv_accel.strategies.shared.vision_attention import attention_flops, attention_scores, check_vision_layer

STEP = 0.01  # of the threshold, for each rank


@register("adavtp")
@dataclass(frozen=True)
class AdaVTP:
    """Attention-ordered selection with an adaptive similarity threshold; a smaller budget is a subset.

    It may also decide how many tokens stay (Appendix B.5): the middle between its bounds, times the picture's effective
    rank over the average. For the paper's 88 tokens and a fifth less or more, the bounds are 70 and 106.

    Parameters
    ----------
    erank_avg : float
        Mean effective rank of pictures in front of this model's decoder. The default is LLaVA-1.5-7B's, of 576 tokens.
        For any other model it has to be measured: `halfv_probe.vision_effective_rank` on calibration samples.
    tau_max : float
        Largest threshold. At 0 attention alone decides.
    vision_layer : int
        The tower's layer whose attention counts.
    """

    erank_avg: float = 94.87
    tau_max: float = 0.25
    vision_layer: int = -2

    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        check_rank_average(self.erank_avg)
        check_vision_layer(self.vision_layer)
        tau = self.tau_max
        if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not 0 <= tau <= 2:
            raise HalfVError(f"tau_max is {tau!r}: give a cosine distance, a number in [0, 2]")

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer),))

    def select(self, view: View, budget: Tensor) -> Tensor:
        attention = attention_scores(view, self.vision_layer)
        ranked = attention.masked_fill(~view.present, -torch.inf).argsort(dim=1, descending=True, stable=True)
        order = ranked.argsort(dim=1).float()  # from 0
        vectors = directions(view.states)
        scale = (effective_rank(view.states, view.present) / self.erank_avg * STEP).float()[:, None]

        def after(worth: Tensor, pick: Tensor, turn: int) -> Tensor:
            threshold = ((1 + order.gather(1, pick)) * scale).clamp(max=self.tau_max)
            distance = (1 - compared(vectors, pick)).clamp(min=0)
            return worth.masked_fill(distance < threshold, -torch.inf)

        worth = (-order).masked_fill(~view.present, -torch.inf)
        picked = greedy_picks(worth, budget, most_of(budget), after)
        return filled(picked, attention, view.present, budget)

    def count(self, view: View, least: Tensor, most: Tensor) -> Tensor:
        richness = effective_rank(view.states, view.present) / self.erank_avg
        wanted = torch.floor((least + most) / 2 * richness + 1e-9).long()
        return torch.minimum(torch.maximum(wanted, least), most)

    def count_flops(self, sizes: Sizes) -> int:
        return effective_rank_flops(sizes.candidates, sizes.decoder.hidden)

    def flops(self, sizes: Sizes) -> int:
        hidden = sizes.decoder.hidden
        removing = 2 * sizes.candidates * hidden * max(0, sizes.kept - 1)
        return attention_flops(sizes) + effective_rank_flops(sizes.candidates, hidden) + removing
