"""VisPruner whose share of important tokens falls with the picture's effective rank (AdaVTP, Table 5)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halfv_accel.strategies.protocol import Needs, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import cosines
from halfv_accel.strategies.shared.erank_share import ErankShare
from halfv_accel.strategies.shared.vision_attention import check_at_least
from halfv_accel.strategies.vispruner import without_duplicates


@register("erank_vispruner")
@dataclass(frozen=True)
class ErankVisPruner(ErankShare):
    """The highest attention, and what is left of the others without duplicates. More parameters: see `ErankShare`.

    Parameters
    ----------
    per_round : int
        Duplicates that leave in a round, at most.
    """

    per_round: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self.per_round, 1, "per_round")

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer), ("features", self.vision_layer)))

    def select(self, view: View, budget: Tensor) -> Tensor:
        important = self.important_tokens(view, budget)
        features = view.vision("features", self.vision_layer)
        others, left = view.present & ~important, budget - important.sum(1)
        return important | without_duplicates(cosines(features, features), others, left, self.per_round)

    def flops(self, sizes: Sizes) -> int:
        width = sizes.tower.hidden if sizes.tower else 0
        return self.share_flops(sizes) + 2 * sizes.candidates**2 * width
