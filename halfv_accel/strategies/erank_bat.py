"""BAT whose share of attentive tokens falls with the picture's effective rank (AdaVTP, Table 5).

BAT (Long et al., Beyond Attentive Tokens, CVPR 2023, arXiv 2211.11315) keeps the tokens of the highest attention,
clusters the others by density peaks, and merges each cluster into one token, weighted by attention. AdaVTP gives no
details of how it was brought to a language model. Here the merged token takes the place of the cluster's most attended
member. BAT's other half, which pairs attentive tokens that are alike, is left out: it would shrink what AdaVTP weighs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfv_accel.strategies.protocol import Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import products, replaced, taken
from halfv_accel.strategies.shared.density_peaks import density_peaks
from halfv_accel.strategies.shared.erank_share import ErankShare
from halfv_accel.strategies.shared.greedy import finite


@register("erank_bat")
@dataclass(frozen=True)
class ErankBat(ErankShare):
    """The highest attention, and one token for each cluster of the others. Parameters: see `ErankShare`."""

    def select(self, view: View, budget: Tensor) -> Tensor:
        important, order, first = self._clusters(view, budget)
        stands = (first == torch.arange(order.shape[1], device=order.device)) & (first >= 0)
        return important | torch.zeros_like(important).scatter(1, order, stands)

    def merge(self, view: View, kept: Tensor) -> Tensor:
        _, order, first = self._clusters(view, kept.sum(1))
        weights = self.attention(view).clamp(min=1e-12).gather(1, order)
        members = first[:, None] == torch.arange(order.shape[1], device=order.device)[:, None]  # [B, cluster, token]
        shares = members * weights[:, None]
        shares = shares / shares.sum(2, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
        merged = products(shares, taken(finite(view.states), order))
        return replaced(view.states, order, merged, members.sum(2) > 1)

    def flops(self, sizes: Sizes) -> int:
        pairs = 2 * sizes.decoder.hidden * sizes.candidates**2
        return 2 * (self.share_flops(sizes, attention=False) + pairs) + pairs + self.share_flops(sizes, rank=False)

    def _clusters(self, view: View, budget: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attentive tokens [B, V]; all others in front, by attention [B, V]; and the first member of each one's
        cluster, as a place in that order, -1 for what is in none."""
        important = self.important_tokens(view, budget)
        others, clusters = view.present & ~important, budget - important.sum(1)
        scores = self.attention(view)
        order = scores.masked_fill(~others, -torch.inf).argsort(dim=1, descending=True, stable=True)
        there = others.gather(1, order) & (clusters > 0)[:, None]
        first = density_peaks(taken(finite(view.states), order), there, clusters)
        return important, order, first.masked_fill(~there, -1)
