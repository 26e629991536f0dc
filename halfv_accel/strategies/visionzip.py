"""VisionZip (Yang et al., arXiv 2412.04467): dominant tokens by the tower's attention, contextual ones by merging.

The dominant tokens are those of the highest attention. Of the others, evenly spaced ones are targets; each one
that is left is given to the target whose key, mean over heads, is most like its own, and a target becomes the average
of itself and what it was given.

The public code adds the average of what was given to the target, which doubles the length of a state; ours averages,
as the paper says. There one of the dominant places is CLS itself, and merging comes before the projector; here a stage
sees projected features, so these are merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from halfv_accel.budget import floor_share
from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import cosines, packed, products, replaced, taken
from halfv_accel.strategies.shared.dividing import evenly_spaced
from halfv_accel.strategies.shared.ranking import top_k_mask
from halfv_accel.strategies.shared.shares import check_share
from halfv_accel.strategies.shared.vision_attention import attention_flops, attention_scores, check_vision_layer


@register("visionzip")
@dataclass(frozen=True)
class VisionZip:
    """Dominant tokens, and targets into which all others are merged.

    Parameters
    ----------
    contextual : float
        Share of the budget that goes to targets, rounded down: 10 of 64, 20 of 128, 30 of 192 in the paper.
    vision_layer : int
        The tower's layer whose attention and keys count.
    """

    contextual: float = 10 / 64
    vision_layer: int = -2

    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        check_share("contextual", self.contextual)
        check_vision_layer(self.vision_layer)

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer), ("keys", self.vision_layer)))

    def select(self, view: View, budget: Tensor) -> Tensor:
        dominant = self._dominant(view, budget)
        return dominant | evenly_spaced(view.present & ~dominant, budget - dominant.sum(1))

    def merge(self, view: View, kept: Tensor) -> Tensor:
        targets, real = packed(kept & ~self._dominant(view, kept.sum(1)))
        if not targets.shape[1]:
            return view.states
        keys = view.vision("keys", self.vision_layer).float().mean(dim=1)
        likeness = cosines(taken(keys, targets), keys).masked_fill(~real[..., None], -torch.inf)
        given = F.one_hot(likeness.argmax(dim=1), targets.shape[1]).mT * (view.present & ~kept)[:, None]
        count = given.sum(2, keepdim=True)
        merged = (taken(view.states, targets).float() + products(given, view.states)) / (1 + count)
        return replaced(view.states, targets, merged, real & (count[..., 0] > 0))

    def _dominant(self, view: View, budget: Tensor) -> Tensor:
        targets = torch.floor(budget.double() * self.contextual + 1e-9).long()  # see floor_share
        return top_k_mask(attention_scores(view, self.vision_layer), view.present, budget - targets)

    def flops(self, sizes: Sizes) -> int:
        key = sizes.tower.hidden // sizes.tower.heads if sizes.tower else 0
        pairs = floor_share(sizes.kept, self.contextual) * sizes.candidates
        return attention_flops(sizes) + 2 * pairs * (key + sizes.decoder.hidden)
