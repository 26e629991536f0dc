"""Plans brought to a budget: the same visual tokens on average over decoder layers, or the same prefill FLOPs.

A method that prunes at layer 2 and one that prunes before the language model are not at the same budget when both keep
a quarter. So the shares of a method's stages are multiplied by one number until the plan as a whole keeps to the budget
on a typical prompt, as nearly as whole tokens allow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from halfv_accel.budget import floor_share
from halfv_accel.decoder import Decoder
from halfv_accel.flops import tokens_per_layer
from halfv_accel.plan import Plan, Stage
from halfv_accel.strategies import KeepNone, RandomChoice
from halfv_probe.trials.candidates import relative_flops

Match = Literal["tokens", "flops"]
CLOSE = 0.02  # of the budget: a plan whose reach ends so little before it still enters


@dataclass(frozen=True)
class Typical:
    """What budgets are matched on: a model's config, a prompt's usual tokens, and whether its pictures can shrink."""

    config: Any
    visual: int
    text: int
    shrinks: bool = False

    def average(self, plan: Plan) -> float:
        """Visual tokens that a decoder layer processes, mean over layers / all."""
        layers = Decoder.of(self.config).layers
        return sum(active for active, _ in tokens_per_layer(layers, self.visual, plan)) / (layers * self.visual)

    def flops(self, plan: Plan) -> float:
        """Exact prefill FLOPs, selection included / untouched."""
        return relative_flops(plan, self.config, self.visual, self.text)

    def whole(self, share: float) -> float:
        """The share that is nearest among whole tokens, at least one."""
        return max(1, round(share * self.visual)) / self.visual

    def measure(self, match: Match) -> Callable[[Plan], float]:
        """What a budget is a share of."""
        return self.average if match == "tokens" else self.flops

    def wanted(self, share: float, match: Match) -> float:
        """What `measure` is to be: the share itself, or the FLOPs of a random choice of it before layer 0."""
        if match == "tokens":
            return max(share, 1 / self.visual)
        return self.flops(random_plan(self.whole(share)))


@dataclass(frozen=True)
class OutOfReach:
    """A budget that no multiple of a plan's shares keeps to, and the nearest that one comes to it."""

    nearest: float
    below: bool  # is the budget below what the plan can reach?


def random_plan(share: float, seed: int = 0) -> Plan:
    """A random choice of so many visual tokens before the language model."""
    return Plan((Stage("random", 0, RandomChoice(seed), share),))


def scaled(typical: Typical, plan: Plan, share: float, match: Match = "tokens") -> Plan | OutOfReach:
    """The plan with the shares of all its stages multiplied by the number that brings it nearest to a budget.

    Parameters
    ----------
    plan : Plan
        Its stages that keep nothing stay as they are.
    share : float
        The budget, in (0, 1].
    match : {"tokens", "flops"}

    Returns
    -------
    Plan
        Shares are whole tokens of a typical prompt: at least one, at most as many as the stage before leaves.
    OutOfReach
        Where what cannot be scaled (layers before the first stage, stages that keep nothing, the cost of choosing)
        leaves more or less than that.
    """
    measure, wanted = typical.measure(match), typical.wanted(share, match)

    def cost(factor: float) -> float:
        return measure(_times(plan, factor, typical.visual))

    shares = {stage.retention for stage in plan.stages if not isinstance(stage.strategy, KeepNone)}
    # At each of these factors some stage gains a token, and between two of them nothing changes.
    factors = sorted({tokens / (typical.visual * own) for own in shares for tokens in range(1, typical.visual + 1)})
    least, most = cost(factors[0]), cost(factors[-1])
    if wanted < least * (1 - CLOSE):
        return OutOfReach(least, below=True)
    if wanted > most * (1 + CLOSE):
        return OutOfReach(most, below=False)
    place = bisect_right(factors, wanted, key=cost)
    nearest = min(factors[max(0, place - 1) : place + 1], key=lambda factor: abs(cost(factor) - wanted))
    return _times(plan, nearest, typical.visual)


def _times(plan: Plan, factor: float, visual: int) -> Plan:
    """The plan with every stage's share multiplied, in whole tokens."""
    stages, left = [], visual
    for stage in plan.stages:
        if not isinstance(stage.strategy, KeepNone):
            left = max(1, min(left, floor_share(visual, stage.retention * factor)))
            stage = replace(stage, retention=left / visual)
        stages.append(stage)
    return replace(plan, stages=tuple(stages))
