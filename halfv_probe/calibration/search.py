"""Which plans a goal has run, on how many samples: few on all of them, many on some, as far as chance allows."""

from __future__ import annotations

from dataclasses import dataclass

from halfv_accel import HalfVError
from halfv_accel.evidence import Goal
from halfv_accel.names import paper_plan
from halfv_accel.plan import SSRMode
from halfv_probe.calibration.measurements import FIRST_LOOK, Measurements
from halfv_probe.choice.choose import choose, contenders, finalists, hopeful, promising
from halfv_probe.choice.confidence import samples_needed
from halfv_probe.choice.pick import cautious, in_question
from halfv_probe.choice.stages import Stages
from halfv_probe.trials.candidates import Candidate, affordable, all_candidates, paper_candidates
from halfv_probe.trials.outcomes import Replied, Trials

SECOND_LOOK = 300  # samples
VARIED = 4  # plans of which every variant is run, after the second look


def check_goal(goal: Goal, measure: Measurements) -> None:
    """Refuse a promise that the samples behind the second look could not show even if nothing were lost.

    Raises
    ------
    HalfVError
    """
    if goal.kind != "max_drop":
        return
    samples, needed = sum(measure.sizes), samples_needed(goal.value or 0.0, goal.confidence)
    tested = samples - measure.first(second_look(goal, samples))
    if tested < needed:
        raise HalfVError(
            f"{samples} samples leave {tested} for the test, and {needed} are needed to show a loss of at most "
            f"{goal.value:.1%} with {goal.confidence:.0%} confidence: give {usual_samples(goal)} samples, "
            "smaller batches, or a larger --max-drop"
        )


def second_look(goal: Goal, samples: int) -> int:
    """How many samples decide which plans are worth the last look."""
    return min(SECOND_LOOK, samples // 4 if goal.kind == "max_drop" else samples)


def usual_samples(goal: Goal) -> int:
    """How many samples a goal should have: for a promise so many that a plan may lose a few and still be shown good."""
    if goal.kind == "paper":
        return 100
    if goal.kind == "target_flops":
        return 600
    tested = 4 * samples_needed(goal.value or 0.0, goal.confidence)
    return -(-(tested + SECOND_LOOK) // 100) * 100


@dataclass(frozen=True)
class Search:
    """One goal's trials on one model."""

    measure: Measurements
    goal: Goal
    replied: Replied
    depth: int

    def run(self, stages: Stages, mode: SSRMode) -> tuple[Trials[Candidate], int]:
        """The plans worth choosing from, on all samples behind the returned one."""
        if self.goal.kind == "paper":
            return self._paper(stages, mode), 0
        return self._free()

    def _paper(self, stages: Stages, mode: SSRMode) -> Trials[Candidate]:
        """The mode's ratios at the layers in question; then the chosen plan's variants, and the paper's own plan."""
        if not stages.stable:
            return self._on_all("plans", [cautious(stages), *self._reference()])
        grid = list(paper_candidates(self.depth, stages.ivr_tried, stages.ssr_tried, mode))
        if not grid:
            raise HalfVError(f"no layers are left between {stages.ivr_tried} and {stages.ssr_tried} for a plan")
        if sum(self.measure.sizes) > FIRST_LOOK:
            grid = list(hopeful(self.measure.trials("first look", grid, self.replied, FIRST_LOOK)).candidates)
        trials = self._on_all("plans", [*grid, *(each for each in self._reference() if each not in grid)])
        asked = trials.where(in_question(trials, stages, mode))
        best = asked.candidates[choose(asked, self.goal)]
        return trials.joined(self._on_all("variants", list(best.variants())))

    def _free(self) -> tuple[Trials[Candidate], int]:
        """All layers, modes and ratios, in three looks.

        A promise is tested on samples that had no part in choosing the plans.
        """
        candidates = list(all_candidates(self.depth))
        reference = self._reference()
        if self.goal.kind == "target_flops":
            config, budget = self.measure.model.config, self.goal.value or 0.0
            candidates = affordable(candidates, config, self.replied.visual, self.replied.text, budget)
        looked = self.measure.trials("first look", candidates, self.replied, FIRST_LOOK)
        seen = second_look(self.goal, sum(self.measure.sizes))
        left = finalists(looked, self.goal).candidates
        looked = self.measure.trials(
            "second look", [*left, *(each for each in reference if each not in left)], self.replied, seen
        )
        varied = {variant: None for best in promising(looked, self.goal, VARIED) for variant in best.variants()}
        if varied:
            looked = looked.joined(self.measure.trials("variants", list(varied), self.replied, seen))
        start = seen if self.goal.kind == "max_drop" else 0
        last = list(contenders(looked, self.goal).candidates)
        if self.goal.kind == "target_flops":  # a promise is tested in a fixed order, which nothing may join
            last += [each for each in reference if each not in last]
        return self.measure.trials("plans", last, self.replied, start=start), start

    def _reference(self) -> list[Candidate]:
        """The paper's own plan for this model (Table 9), where it has one."""
        plan = paper_plan(self.measure.model)
        return [] if plan is None else [Candidate.of(plan)]

    def _on_all(self, step: str, candidates: list[Candidate]) -> Trials[Candidate]:
        return self.measure.trials(step, candidates, self.replied)
