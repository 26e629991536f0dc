"""What is known of the pictures of one prefill: where their tokens are, and what the vision tower made of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from halfv_accel.adapters.structure import Structure
from halfv_accel.adapters.vision import VisionRecorder, VisionSignals
from halfv_accel.engine.rows import Rows
from halfv_accel.plan import Plan
from halfv_accel.strategies import Places, Signal, hides_separators, needs_of


@dataclass
class Scene:
    """The structure at full length, and the recorder that listens to the towers."""

    structure: Structure
    recorder: VisionRecorder

    @property
    def separator(self) -> Tensor:
        """Visual tokens that show nothing: [B, S] bool."""
        return self.structure.places.separator

    def places(self, visual: Rows) -> Places:
        """Of some tokens: [B, V]."""
        places = self._at(visual).places
        return Places(**{name: part.to(visual.index.device) for name, part in vars(places).items()})

    def signal(self, signal: Signal, layer: int, visual: Rows) -> Tensor:
        """Of some tokens, as `View.vision`; 0 on padding and on separators."""
        return self._signals.at(signal, layer, self._at(visual)).to(visual.index.device)

    def listen(self) -> None:
        """Take what the towers have said, before they are asked about something else."""
        _ = self._signals

    @cached_property
    def _signals(self) -> VisionSignals:
        """They are there once the towers are through, which is before the first layer and after the forward's begin."""
        with torch.no_grad():
            return self.recorder.signals(self.structure)

    def _at(self, visual: Rows) -> Structure:
        home = self.structure.source.device
        return self.structure.at(visual.index.to(home), visual.present().to(home))


def asks_of_pictures(plan: Plan) -> bool:
    """Does a plan need more of a prompt than its tokens?"""
    asking = [stage.strategy for stage in plan.stages if not stage.keeps_everything]
    needs = [needs_of(strategy) for strategy in asking]
    return any(need.structure or need.vision for need in needs) or any(map(hides_separators, asking))


def vision_needs(plan: Plan) -> set[tuple[Signal, int]]:
    """All signals that the stages of a plan ask for."""
    stages = [stage for stage in plan.stages if not stage.keeps_everything]
    return {need for stage in stages for need in needs_of(stage.strategy).vision}
