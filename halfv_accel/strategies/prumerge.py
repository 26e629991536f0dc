"""PruMerge+ (Shang et al., ICCV 2025, arXiv 2403.15388): outliers of attention, uniform samples, weighted merging.

Tokens whose attention in the vision tower is above Q3 + 1.5 (Q3 - Q1) are important (§3.2); evenly spaced ones of the
others fill the budget. Each kept token then becomes the average, weighted by attention, of itself and the dropped
tokens whose keys are nearest to its own (§3.3; products of keys over all heads). The count can adapt to the picture:
three evenly spaced tokens for each outlier, which is the public code's stride.

The public code takes the last layer and attention over all heads as one, adds the weighted sum without dividing by
the weights, and appends one more token for everything that was dropped; ours takes the last but one, the mean over
heads, and the average that the text of the paper tells of. There merging comes before the projector, here behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import packed, products, replaced, taken
from halfv_accel.strategies.shared.dividing import evenly_spaced
from halfv_accel.strategies.shared.ranking import top_k_mask
from halfv_accel.strategies.shared.vision_attention import (
    attention_flops,
    attention_scores,
    check_at_least,
    check_vision_layer,
)


@register("prumerge")
@dataclass(frozen=True)
class PruMerge:
    """Outliers and evenly spaced tokens, which take up their nearest neighbours.

    Parameters
    ----------
    neighbours : int
        Dropped tokens that a kept one takes up.
    samples : int
        Evenly spaced tokens for each outlier, where the count adapts; 0 is PruMerge without the plus.
    vision_layer : int
        The tower's layer whose attention and keys count.
    """

    neighbours: int = 32
    samples: int = 3
    vision_layer: int = -2

    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        check_at_least(self.neighbours, 0, "neighbours")
        check_at_least(self.samples, 0, "samples")
        check_vision_layer(self.vision_layer)

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer), ("keys", self.vision_layer)))

    def count(self, view: View, least: Tensor, most: Tensor) -> Tensor:
        found = outliers(attention_scores(view, self.vision_layer), view.present).sum(1)
        return torch.minimum(torch.maximum(found * (1 + self.samples), least), most)

    def select(self, view: View, budget: Tensor) -> Tensor:
        scores = attention_scores(view, self.vision_layer)
        important = outliers(scores, view.present)
        important = top_k_mask(scores, important, budget)
        return important | evenly_spaced(view.present & ~important, budget - important.sum(1))

    def merge(self, view: View, kept: Tensor) -> Tensor:
        centres, real = packed(kept)
        weight = attention_scores(view, self.vision_layer).masked_fill(~view.present, 0)
        dropped = (view.present & ~kept)[:, None]
        keys = view.vision("keys", self.vision_layer).float().transpose(1, 2).flatten(2)
        nearness = products(taken(keys, centres), keys.mT).masked_fill(~dropped, -torch.inf)
        nearest = nearness.argsort(dim=2, descending=True, stable=True)[..., : self.neighbours]
        members = torch.zeros_like(nearness, dtype=torch.bool).scatter(2, nearest, True) & dropped
        weights = members * weight[:, None]
        own = weight.gather(1, centres)[..., None]
        total = own + weights.sum(2, keepdim=True)
        merged = (own * taken(view.states, centres).float() + products(weights, view.states)) / total
        return replaced(view.states, centres, merged, real & members.any(2) & (total[..., 0] > 0))

    def count_flops(self, sizes: Sizes) -> int:
        return 0  # the attention is there, and is counted once

    def flops(self, sizes: Sizes) -> int:
        keys = sizes.tower.hidden if sizes.tower else 0
        return attention_flops(sizes) + 2 * sizes.kept * sizes.candidates * (keys + sizes.decoder.hidden)


def outliers(scores: Tensor, present: Tensor) -> Tensor:
    """Scores above Q3 + 1.5 (Q3 - Q1) of their row; quartiles are interpolated linearly."""
    if not present.shape[1]:
        return present
    ordered = scores.double().masked_fill(~present, torch.inf).sort(dim=1).values
    last = (present.sum(1, keepdim=True) - 1).clamp(min=0)

    def quartile(quarters: int) -> Tensor:
        below, quarter = quarters * last // 4, quarters * last % 4
        low, high = ordered.gather(1, below), ordered.gather(1, torch.minimum(below + 1, last))
        return low + quarter / 4 * (high - low)

    first, third = quartile(1), quartile(3)
    return present & (scores.double() > third + 1.5 * (third - first))
