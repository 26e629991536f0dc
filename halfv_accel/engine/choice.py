"""One stage asks its strategy: which tokens, how many of them, and what they hold afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfv_accel.engine.rows import Rows
from halfv_accel.engine.view import LayerInput, LayerView
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Stage
from halfv_accel.strategies import Adaptive, Merging


@dataclass
class Choice:
    """What a stage asks with, and what it was answered.

    Parameters
    ----------
    view : LayerView
    candidates : (B, S) bool Tensor
        Visual tokens that the strategy is shown.
    counts : list of int
        How many these are in each row.
    hidden : (B, S) bool Tensor or None
        Separators in play that the strategy is not shown; they stay only when everything else does.
    """

    stage: Stage
    view: LayerView
    candidates: Tensor
    counts: list[int]
    hidden: Tensor | None
    chosen: Tensor | None = None  # [B, V], the strategy's answer

    def count(self, least: list[int], most: list[int]) -> list[int]:
        """How many tokens the strategy wants to keep of each row, within these bounds."""
        strategy, device = self.stage.strategy, self.candidates.device
        bounds = [[min(bound, shown) for bound, shown in zip(side, self.counts, strict=True)] for side in (least, most)]
        if not isinstance(strategy, Adaptive):
            raise HalfVError(f"strategy {strategy!r} does not decide how many tokens stay: leave out `least`")
        if bounds[0] == bounds[1]:
            return [max(low, n) for low, n in zip(least, bounds[0], strict=True)]
        with torch.no_grad():
            wanted = strategy.count(self.view, *(on_device(side, device) for side in bounds))
        if self.view.family.ranks is not None:
            wanted = self.view.family.ranks.first(wanted)
        found = [int(number) for number in wanted.tolist()]
        if len(found) != len(most) or any(not a <= n <= b for a, n, b in zip(bounds[0], found, bounds[1], strict=True)):
            raise HalfVError(f"strategy {strategy!r} wants to keep {found} tokens, which is not from {least} to {most}")
        return [max(low, n) for low, n in zip(least, found, strict=True)]  # by separators, where nothing else is left

    def select(self, budget: list[int]) -> Tensor:
        """The strategy's choice in full-length positions: [B, S] bool."""
        strategy, device = self.stage.strategy, self.candidates.device
        shown = [min(wanted, count) for wanted, count in zip(budget, self.counts, strict=True)]
        wanted = on_device(shown, device)
        with torch.no_grad():  # a choice has no gradient
            chosen = strategy.select(self.view, wanted)
        visual, ranks = self.view.visual, self.view.family.ranks
        fits = chosen.dtype == torch.bool and chosen.shape == visual.index.shape
        if fits and ranks is not None:
            chosen = ranks.first(chosen)  # no two of them may keep different tokens
        if not fits or bool((chosen & ~visual.present()).any() | (chosen.sum(1) != wanted).any()):
            raise HalfVError(
                f"strategy {strategy!r} did not choose {shown} of {self.counts} visual tokens: "
                "return a bool mask [batch, visual] with exactly the budget in each row"
            )
        self.chosen = chosen
        kept = torch.zeros_like(self.candidates).scatter(1, visual.index, chosen)
        if self.hidden is None or budget == shown:
            return kept
        rest = on_device([all_ - some for all_, some in zip(budget, shown, strict=True)], device)
        return kept | (self.hidden & (self.hidden.cumsum(1) <= rest[:, None]))

    def merged(self, here: LayerInput) -> LayerInput:
        """The layer's input, with the dropped tokens merged into the kept ones where the strategy does so."""
        strategy, chosen = self.stage.strategy, self.chosen
        if chosen is None or not isinstance(strategy, Merging):
            return here
        with torch.no_grad():
            states = strategy.merge(self.view, chosen)
        visual = self.view.visual
        dropped = (visual.present() & ~chosen).any(1, keepdim=True)  # the others keep their states to the last bit
        written = Rows(visual.index, chosen & dropped, visual.length)
        return LayerInput(written.scatter(here.states, states), here.rotary)


def on_device(values: list[Any], device: torch.device) -> Tensor:
    """Numbers of the host as a tensor, without waiting for what the device has to do before."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
