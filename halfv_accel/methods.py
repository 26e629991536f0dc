"""What a published method is: a plan's worth of data. What chooses tokens is a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halfv_accel.downsample import Downsample
from halfv_accel.plan import Stage, Then
from halfv_accel.strategies import STRATEGIES, needs_of


@dataclass(frozen=True)
class Facts:
    """What defaults depend on: decoder layers, and the config's model type."""

    layers: int
    model_type: str = ""

    @classmethod
    def of(cls, config: Any) -> Facts:
        """From a transformers config."""
        return cls(config.get_text_config().num_hidden_layers, config.model_type)


@dataclass(frozen=True)
class Step:
    """One stage of a method.

    Parameters
    ----------
    layer : int
        Decoder layer, counted from 0.
    of : int, optional
        Layers of the model that the source gives it for: it is scaled by depth. Without it the layer is as it stands.
    retention, then
        As in `Stage`.
    strategy : str, optional
        What chooses, where it is not the method's own.
    parameters : mapping
        Of the strategy, beside the method's own.
    """

    layer: int
    of: int | None = None
    retention: float = 1.0
    then: Then = "drop"
    strategy: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def at(self, layers: int) -> int:
        """Its layer in a model of so many."""
        return self.layer if self.of is None else round(self.layer * layers / self.of)


@dataclass(frozen=True)
class Method:
    """A published method.

    Parameters
    ----------
    name : str
        In plans.
    title, source : str
        As people call it; authors, year and arXiv number.
    strategy : str
        The registered strategy that chooses; none where pictures are shrunk.
    steps : tuple of Step
        Its stages by default; `by_family` for models of a type (the start of the config's model_type).
    defaults : str
        Where the defaults come from.
    departs : str
        How public code departs from the paper, and what ours does.
    reads_text : bool
        Does the choice depend on what the prompt asks?
    calibrated : bool
        Are its layers or counts to be measured on the model at hand, and the defaults only a start?
    parameters : mapping
        The strategy's parameters that make it this method.
    downsample : Downsample, optional
        To how many visual tokens it shrinks pictures by default.
    """

    name: str
    title: str
    source: str
    strategy: str
    steps: tuple[Step, ...]
    defaults: str
    departs: str = ""
    reads_text: bool = False
    calibrated: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    by_family: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    downsample: Downsample | None = None

    def stages(self, facts: Facts) -> tuple[Stage, ...]:
        """Its stages for a model; layers that fall together in a shallow one move apart."""
        steps = next((s for kind, s in self.by_family.items() if facts.model_type.startswith(kind)), self.steps)
        found: list[Stage] = []
        for number, step in enumerate(steps, 1):
            strategy = STRATEGIES.build(step.strategy or self.strategy, {**self.parameters, **step.parameters})
            least = int(needs_of(strategy).before)
            layer = max(step.at(facts.layers), found[-1].layer + 1 if found else least)
            if layer >= facts.layers:  # a model of fewer layers than stages
                break
            name = self.name if len(steps) == 1 else f"{self.name} {number}"
            found.append(Stage(name, layer, strategy, step.retention, step.then))
        return tuple(found)

    @property
    def strategies(self) -> set[str]:
        """Names of all that its stages are made of."""
        steps = (*self.steps, *(step for steps in self.by_family.values() for step in steps))
        return {self.strategy, *(step.strategy for step in steps if step.strategy is not None)}
