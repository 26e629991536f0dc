"""InfoPrune, stage 1: tokens that add a direction, out of those with the highest attention (Eq. 6-8, Algorithm 1).

The pool is the alpha T tokens of the highest attention in the vision tower, from layer -2 (Appendix B). Each pick is
the token of the pool that leaves most beside the span of the picked ones, scaled by the root of its prior
q = softmax(a / tau)^gamma. Should picks end early, the highest attention fills the budget. Dropped tokens are merged
into the kept ones that are most like them.

Where the paper leaves something open or contradicts itself: a are probabilities, so their softmax at tau = 0.7 is
nearly flat, and attention acts through the pool far more than through q. MFI is a norm in Eq. 2 and its square in
Appendix C.1.1, which gives the same order. Epsilon and beta have no value; ours are small and one. X may lie before the
projector or behind it; here it is what the language model gets, which is what merging overwrites. Algorithm 1 also
truncates a choice larger than T, which it cannot make. Of stage 2 (the choice is FastV's), K is detected by semantic
convergence (abstract) or predefined (Section 3.2, Appendix H); the saliency flow of Eq. 4-5 asks for gradients, shows
when evidence has flowed, and does not rank; R2 is called a pruning ratio and is what stays of stage 1's tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import cosines, packed, products, replaced, taken
from halfv_accel.strategies.shared.greedy import filled, finite, most_of, volume_flops, volume_picks
from halfv_accel.strategies.shared.ranking import top_k_mask
from halfv_accel.strategies.shared.vision_attention import attention_flops, attention_scores, check_vision_layer


@register("infoprune")
@dataclass(frozen=True)
class InfoPrune:
    """Attention makes a pool, marginal information chooses from it, and what goes is merged into what stays.

    Parameters
    ----------
    pool : float
        alpha, at least 1: size of the pool over that of the budget. 2 for LLaVA, 3 for Qwen2.5-VL (Appendix B).
    temperature, exponent : float
        tau and gamma of the prior (Eq. 6).
    saturation : float
        epsilon, as a share of the pool's largest squared length: picks end when no token has more left.
    inertia : float
        beta: how many tokens a kept one counts for when others are merged into it.
    vision_layer : int
        The tower's layer whose attention counts.
    """

    pool: float = 2.0
    temperature: float = 0.7
    exponent: float = 0.5
    saturation: float = 1e-5
    inertia: float = 1.0
    vision_layer: int = -2

    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        check_vision_layer(self.vision_layer)
        for name, least in (("pool", 1), ("exponent", 0), ("saturation", 0), ("temperature", 1e-6), ("inertia", 1e-6)):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not least <= value < float("inf"):
                raise HalfVError(f"{name} is {value!r}: give a number of at least {least}")

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer),))

    def select(self, view: View, budget: Tensor) -> Tensor:
        most = most_of(budget)
        if not most:
            return torch.zeros_like(view.present)
        attention = attention_scores(view, self.vision_layer)
        pool = top_k_mask(attention, view.present, torch.floor(budget.double() * self.pool + 1e-9).long())
        index = pool.int().argsort(dim=1, descending=True, stable=True)[:, : self._pool_size(most)]

        states = taken(finite(view.states), index)
        prior = self._prior(attention, view.present).gather(1, index)
        worth = (prior * states.square().sum(-1)).masked_fill(~pool.gather(1, index), -torch.inf)
        floor = self.saturation * worth.amax(1, keepdim=True).clamp(min=0)
        picked = volume_picks(states * prior.sqrt()[..., None], worth, budget, most, floor)
        return filled(torch.zeros_like(pool).scatter(1, index, picked), attention, pool, budget)

    def merge(self, view: View, kept: Tensor) -> Tensor:
        places, real = packed(kept)
        if not places.shape[1]:
            return view.states
        likeness = cosines(taken(view.states, places), view.states).masked_fill(~real[..., None], -torch.inf)
        joins = likeness.argmax(dim=1, keepdim=True) == torch.arange(places.shape[1], device=places.device)[:, None]
        joins = joins & (view.present & ~kept)[:, None]  # [B, kept, V]
        joined = joins.sum(2, keepdim=True)
        total = self.inertia * taken(view.states, places).float() + products(joins, finite(view.states))
        return replaced(view.states, places, total / (self.inertia + joined), real & (joined[..., 0] > 0))

    def flops(self, sizes: Sizes) -> int:
        hidden = sizes.decoder.hidden
        picks = volume_flops(min(self._pool_size(sizes.kept), sizes.candidates), sizes.kept, hidden)
        return attention_flops(sizes) + picks + 4 * sizes.candidates * sizes.kept * hidden

    def _pool_size(self, budget: int) -> int:
        return math.floor(budget * self.pool + 1e-9)  # see floor_share

    def _prior(self, attention: Tensor, present: Tensor) -> Tensor:
        """q of Eq. 6: [B, V]."""
        logits = (attention / self.temperature).masked_fill(~present, torch.finfo(attention.dtype).min)
        return logits.softmax(dim=1) ** self.exponent
