"""DART (Wen et al., 2025, arXiv 2502.11494): keep what duplicates the pivots least.

A few pivots are chosen by the L1 norm of their keys, among the visual tokens and among the text. The visual pivots
stay; then each pivot in turn adds the tokens whose hidden states are least similar to its own (cosine).

The public code (LightCompress's port) walks through the pivots in the order of a Python set, keeps floor(budget /
pivots) tokens for each of them beside the visual pivots, whatever that adds up to, and looks for text pivots behind the
picture only. Here visual pivots go first and then the text's, the largest norm first; they count in the budget, the
rest is shared equally (what does not divide goes to the first pivots), and any text token may be a pivot, since
pictures may stand anywhere. Keys are taken without position embedding: it changes their L1 norm, and the choice would
depend on how much padding stands in front.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Needs, ScoredBy, Sizes, View, check_scored_by
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import cosines, taken
from halfv_accel.strategies.shared.ranking import top_k_mask


@register("dart")
@dataclass(frozen=True)
class Dart:
    """Pivots by key norm, then the tokens least similar to them.

    Parameters
    ----------
    visual_pivots, text_pivots : int
        At least one visual pivot; a row with fewer tokens has fewer pivots.
    scored_by : {"previous", "own"}
        Whose keys: the layer's before the stage (the public code), or the stage's own layer's.
    """

    visual_pivots: int = 4
    text_pivots: int = 4
    scored_by: ScoredBy = "previous"

    def __post_init__(self) -> None:
        check_scored_by(self.scored_by)
        for name, least in (("visual_pivots", 1), ("text_pivots", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise HalfVError(f"{name} is {value!r}: give a whole number, at least {least}")

    @property
    def needs(self) -> Needs:
        return Needs(before=self.scored_by == "previous")

    def select(self, view: View, budget: Tensor) -> Tensor:
        visual_keys, text_keys = view.keys(self.scored_by, rotary=False)
        visual = _by_norm(visual_keys, view.present)[:, : self.visual_pivots]
        text = _by_norm(text_keys, view.text_present)[:, : self.text_pivots]
        counts = budget.clamp(max=self.visual_pivots), view.text_present.sum(1).clamp(max=self.text_pivots)
        valid = torch.cat([_first(visual, counts[0]), _first(text, counts[1])], dim=1)

        pivots = torch.cat([taken(view.states, visual), taken(view.text_states, text)], dim=1)
        alike = cosines(pivots, view.states)  # [B, pivots, V]
        shares = _shares(budget - counts[0], valid)
        chosen = torch.zeros_like(view.present).scatter(1, visual, valid[:, : visual.shape[1]])
        for pivot in range(valid.shape[1]):
            chosen = chosen | top_k_mask(-alike[:, pivot], view.present & ~chosen, shares[:, pivot])
        return chosen

    def flops(self, sizes: Sizes) -> int:
        pivots = min(self.visual_pivots, sizes.candidates) + min(self.text_pivots, sizes.text)
        return sizes.keys_flops() + 2 * sizes.decoder.hidden * sizes.candidates * pivots


def _by_norm(keys: Tensor, present: Tensor) -> Tensor:
    """Tokens [B, N], the largest L1 norm of all heads' keys [B, heads, N, d] first."""
    norms = keys.float().abs().sum(dim=(1, 3)).masked_fill(~present, -torch.inf)
    return norms.argsort(dim=1, descending=True, stable=True)


def _first(ranked: Tensor, counts: Tensor) -> Tensor:
    return torch.arange(ranked.shape[1], device=ranked.device) < counts[:, None]


def _shares(tokens: Tensor, valid: Tensor) -> Tensor:
    """The tokens [B] in equal parts for the valid pivots [B, P], one more for the first ones."""
    many = valid.sum(1, keepdim=True).clamp(min=1)
    extra = valid.cumsum(1) <= tokens[:, None] % many
    return (tokens[:, None] // many + extra.long()) * valid
