"""DivPrune and FasterVLM, mixed by the picture's effective rank (AdaVTP, Table 6).

The paper says that the share of attention falls linearly with effective rank, and gives no formula; what ours is, is in
`halfv_accel.strategies.shared.erank_share`. Nor does it say how the two choices meet: here DivPrune chooses among the
tokens that attention has not taken, as Table 3 replaces tokens of one by those of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfv_accel.strategies.protocol import Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import cosines
from halfv_accel.strategies.shared.erank_share import ErankShare
from halfv_accel.strategies.shared.greedy import greedy_picks, most_of


@register("erank_divprune")
@dataclass(frozen=True)
class ErankDivPrune(ErankShare):
    """The highest attention, and the most diverse of the others. Parameters: see `ErankShare`."""

    def select(self, view: View, budget: Tensor) -> Tensor:
        important = self.important_tokens(view, budget)
        return important | _diverse(view.states, view.present & ~important, budget - important.sum(1))

    def flops(self, sizes: Sizes) -> int:
        return self.share_flops(sizes) + 2 * sizes.decoder.hidden * sizes.candidates**2


def _diverse(states: Tensor, tokens: Tensor, budget: Tensor) -> Tensor:
    """DivPrune from a table of all cosines, whose cost does not depend on how many are chosen; the picture decides."""
    table = cosines(states, states)
    table = torch.maximum(table, table.mT)  # both say the same, but for rounding, and neighbours of each other tie
    itself = torch.eye(table.shape[1], dtype=torch.bool, device=table.device)
    nearest = table.masked_fill(itself | ~tokens[:, None], -torch.inf).amax(2) if table.shape[1] else table.sum(2)

    def after(worth: Tensor, pick: Tensor, turn: int) -> Tensor:
        away = -table.gather(1, pick[..., None].expand(-1, -1, table.shape[2]))[:, 0]
        return (torch.minimum(worth, away) if turn else away).masked_fill(worth == -torch.inf, -torch.inf)

    return greedy_picks((-nearest).masked_fill(~tokens, -torch.inf), budget, most_of(budget), after)
