"""Does the choice hold? The same choice again, under other conditions (what the reviews of the paper ask for).

Other numbers of eigenvalues, thresholds halved and doubled, fewer samples, halves of the data, single tasks. Everything
was measured once; only what follows from it is asked anew, among the plans that were run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halfv_accel import HalfVError
from halfv_accel.evidence import Goal, Held
from halfv_accel.plan_text import describe_plan
from halfv_probe.choice.choose import TOLERANCE
from halfv_probe.choice.findings import KS, Findings
from halfv_probe.choice.pick import Picked, pick
from halfv_probe.choice.stages import LIMITS, Stages
from halfv_probe.choice.witnesses import Limits
from halfv_probe.trials.candidates import Alone, Candidate
from halfv_probe.trials.outcomes import Trials

SIZES = (10, 30, 100)
LEAST = 5  # samples of a task from which something may be chosen
SAME_LAYER = 12  # a layer that moves by no more than this part of the depth is the same
About = Literal["k", "thresholds", "samples", "halves", "task"]


@dataclass(frozen=True)
class Known:
    """All that the choice was made of; ``tasks`` are those of the samples of ``trials``, in their order."""

    findings: Findings
    alone: Trials[Alone] | None
    trials: Trials[Candidate]
    goal: Goal
    tasks: Sequence[str] = ()

    def choice(
        self, k: int | None = None, limits: Limits = LIMITS, tolerance: float = TOLERANCE
    ) -> tuple[Stages, Picked | None]:
        """Stages and plan; no plan where none reaches the goal."""
        stages = self.findings.stages(k, limits)
        try:
            return stages, pick(stages, self.alone, self.trials, self.goal, tolerance)
        except HalfVError:
            return stages, None

    def of(self, kept: NDArray[np.bool_]) -> Known:
        """On some samples; curves and the second stage alone were measured on the first of them only."""

        def first(count: int) -> NDArray[np.intp]:
            return np.flatnonzero(kept[:count])

        alone = None if self.alone is None else self.alone.of(first(self.alone.lost.shape[1]))
        return replace(
            self,
            findings=self.findings.of(first(len(self.findings.curves))),
            alone=alone,
            trials=self.trials.of(first(self.trials.lost.shape[1])),
        )


def holds(known: Known) -> list[Held]:
    """The choice under every other condition, each with what differs from the one that was made."""
    return [_held(about, condition, known.choice(), other) for about, condition, other in _conditions(known)]


def _conditions(known: Known) -> Iterator[tuple[About, str, tuple[Stages, Picked | None]]]:
    for k in KS:
        yield "k", f"k = {k}", known.choice(k=k)
    for field in fields(Limits):
        value = getattr(LIMITS, field.name)
        for factor, word in ((0.5, "halved"), (2.0, "doubled")):
            if not (field.name in ("explained", "decided") and factor > 1):  # shares that cannot be doubled
                limits = replace(LIMITS, **{field.name: value * factor})
                yield "thresholds", f"{field.name.replace('_', ' ')} {word}", known.choice(limits=limits)
    for factor, word in ((0.5, "halved"), (2.0, "doubled")):
        yield "thresholds", f"tolerance {word}", known.choice(tolerance=TOLERANCE * factor)
    number = np.arange(known.trials.lost.shape[1])
    for size in SIZES:
        if size < len(number):
            yield "samples", f"first {size} samples", known.of(number < size).choice()
    if len(number) >= 2 * LEAST:
        yield "halves", "even samples", known.of(number % 2 == 0).choice()
        yield "halves", "odd samples", known.of(number % 2 == 1).choice()
    tasks = np.array(known.tasks)
    for task in dict.fromkeys(known.tasks):
        if LEAST <= (tasks == task).sum() < len(tasks):
            yield "task", task, known.of(tasks == task).choice()


def _held(
    about: About, condition: str, made: tuple[Stages, Picked | None], other: tuple[Stages, Picked | None]
) -> Held:
    (stages, picked), (again, plan) = made, other
    apart = max(1, stages.depth // SAME_LAYER)
    flips: list[Literal["stable", "ivr", "ssr", "mode", "plan"]] = []
    if again.stable != stages.stable:
        flips.append("stable")
    if abs(again.ivr_layer - stages.ivr_layer) > apart:
        flips.append("ivr")
    if abs(again.ssr_layer - stages.ssr_layer) > apart:
        flips.append("ssr")
    if plan is None or picked is None or plan.mode != picked.mode:
        flips.append("mode")
    if plan is None or picked is None or _apart(plan.candidate, picked.candidate, apart):
        flips.append("plan")
    return Held(
        about=about,
        condition=condition,
        stable=again.stable,
        ivr=again.ivr_layer,
        ssr=again.ssr_layer,
        mode="none" if plan is None else plan.mode,
        plan="no plan reaches the goal" if plan is None else describe_plan(plan.candidate.plan()),
        flips=flips,
    )


def _apart(one: Candidate, other: Candidate, layers: int) -> bool:
    """Do two plans differ in mode or ratio, or by more than so many layers?"""
    if (one.ssr_mode, one.ivr_retention, one.ssr_retention) != (
        other.ssr_mode,
        other.ivr_retention,
        other.ssr_retention,
    ):
        return True
    return max(abs(one.ivr_layer - other.ivr_layer), abs((one.ssr_layer or 0) - (other.ssr_layer or 0))) > layers
