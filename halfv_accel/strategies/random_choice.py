"""Keep visual tokens at random: what a plan saves when choosing is nearly free, and what every choice must beat."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Needs, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.ranking import top_k_mask


@register("random_choice")
@dataclass(frozen=True)
class RandomChoice:
    """A uniform choice that depends on the seed and on the row's number of visual tokens, and on nothing beside it.

    Parameters
    ----------
    seed : int
        At least 0. The draw is made on the CPU, so that every device gives the same.
    """

    seed: int = 0

    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise HalfVError(f"seed is {self.seed!r}: give a whole number from 0 to {2**32 - 1}")

    def select(self, view: View, budget: Tensor) -> Tensor:
        scores = torch.zeros(view.present.shape)
        for row, count in enumerate(view.present.sum(1).tolist()):
            mixed = Random(f"{self.seed} {count}").getrandbits(32)  # torch's generator looks at 32 bits of a seed only
            draw = torch.Generator().manual_seed(mixed)
            scores[row, :count] = torch.rand(count, generator=draw)
        return top_k_mask(scores.to(view.present.device), view.present, budget)

    def flops(self, sizes: Sizes) -> int:
        return 0
