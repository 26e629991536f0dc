"""VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818v2): important tokens by attention, diverse ones by duplicates.

Half of the budget goes to the tokens of the highest attention in the vision tower. From the others duplicates are
removed until as many are left as the other half asks for: in each round they are split in two, every other one in
either part, and those of the first part leave that are most like one of the second (cosine of the features before the
projector). The public code cuts features and projects what is left; it also lets a round reorder the tokens, so that
the next one splits them by their likeness. Ours splits by the order in the picture in every round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import cosines
from halfv_accel.strategies.shared.ranking import top_k_mask
from halfv_accel.strategies.shared.shares import check_share
from halfv_accel.strategies.shared.vision_attention import (
    attention_flops,
    attention_scores,
    check_at_least,
    check_vision_layer,
)


@register("vispruner")
@dataclass(frozen=True)
class VisPruner:
    """Important tokens, and what is left of the others without duplicates.

    Parameters
    ----------
    important : float
        Share of the budget that goes by attention, rounded down.
    per_round : int
        Duplicates that leave in a round, at most. More are faster and see less.
    vision_layer : int
        The tower's layer whose attention counts.
    """

    important: float = 0.5
    per_round: int = 8
    vision_layer: int = -2

    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        check_share("important", self.important)
        check_at_least(self.per_round, 1, "per_round")
        check_vision_layer(self.vision_layer)

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer), ("features", self.vision_layer)))

    def select(self, view: View, budget: Tensor) -> Tensor:
        many = torch.floor(budget.double() * self.important + 1e-9).long()  # see floor_share
        important = top_k_mask(attention_scores(view, self.vision_layer), view.present, many)
        features = view.vision("features", self.vision_layer)
        others = view.present & ~important
        return important | without_duplicates(cosines(features, features), others, budget - many, self.per_round)

    def flops(self, sizes: Sizes) -> int:
        width = sizes.tower.hidden if sizes.tower else 0
        return attention_flops(sizes) + 2 * sizes.candidates**2 * width


def without_duplicates(likeness: Tensor, tokens: Tensor, budget: Tensor, per_round: int) -> Tensor:
    """Remove the most alike, round by round; of equal ones the later leave first.

    Parameters
    ----------
    likeness : (B, V, V) Tensor
    tokens : (B, V) bool Tensor
    budget : (B,) long Tensor
        Tokens that stay in each row.

    Returns
    -------
    (B, V) bool Tensor
    """
    tokens = tokens & (budget > 0)[:, None]
    rows = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    for width in _widths(torch.stack([tokens.sum(1), budget], dim=1).tolist(), per_round):
        many = tokens.sum(1)
        order = tokens.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        real = tokens.gather(1, order)
        first, second = order[:, ::2], order[:, 1::2]
        alike = likeness[rows, first[:, :, None], second[:, None, :]]
        alike = alike.masked_fill(~real[:, None, 1::2], -torch.inf).amax(dim=2)
        leaving = torch.minimum(many - budget, (many + 1) // 2).clamp(0, per_round)
        leave = top_k_mask(alike.flip(1), real[:, ::2].flip(1), leaving).flip(1)
        tokens = tokens.scatter(1, first, real[:, ::2] & ~leave)
    return tokens


def _widths(rows: list[list[int]], per_round: int) -> list[int]:
    """Tokens of the longest row that still has too many, before each round: known without a look at the device."""
    widths = []
    while unfinished := [row for row in rows if row[0] > row[1]]:
        widths.append(max(many for many, _ in unfinished))
        rows = [[many - min(per_round, many - kept, (many + 1) // 2), kept] for many, kept in unfinished]
    return widths
