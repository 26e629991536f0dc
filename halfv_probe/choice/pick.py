"""The whole choice: stages say where to look, trials of the second stage alone say how, trials of plans say which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from halfv_accel import HalfVError
from halfv_accel.evidence import Goal
from halfv_accel.plan import SSRMode
from halfv_probe.choice.choose import TOLERANCE, choose
from halfv_probe.choice.mode import ModeVerdict, mode_by_trials
from halfv_probe.choice.stages import Stages
from halfv_probe.trials.candidates import PAPER, Alone, Candidate, anchor_ratio
from halfv_probe.trials.outcomes import Trials


@dataclass(frozen=True)
class Picked:
    """What was chosen: the candidate (its number among the trials, or None if it was not run), and the mode's verdict.

    ``verdict`` is None where the second stage was not asked alone.
    """

    candidate: Candidate
    number: int | None
    mode: SSRMode
    verdict: ModeVerdict | None


def settle_mode(stages: Stages, alone: Trials[Alone] | None) -> tuple[SSRMode, ModeVerdict | None]:
    """The mode: by trials where they tell, else by KL; none where there are no stages."""
    if not stages.stable or alone is None:
        return stages.ssr_mode, None
    verdict = mode_by_trials(alone, stages.near_saturation)
    return verdict.mode or stages.ssr_mode, verdict


def pick(
    stages: Stages, alone: Trials[Alone] | None, trials: Trials[Candidate], goal: Goal, tolerance: float = TOLERANCE
) -> Picked:
    """Choose among the plans that were run.

    For the goal ``paper``: of the mode that `settle_mode` gives, at its ratios and at the layers that the stages name.

    Raises
    ------
    HalfVError
        If no plan reaches the goal.
    """
    mode, verdict = settle_mode(stages, alone)
    if goal.kind != "paper":
        number = choose(trials, goal)
        return Picked(trials.candidates[number], number, trials.candidates[number].ssr_mode, verdict)
    if not stages.stable:
        return _at(trials, cautious(stages), mode, verdict)
    numbers = in_question(trials, stages, mode)
    if len(numbers) == 0:
        raise HalfVError(f"no plan of mode '{mode}' was run: calibrate again")
    number = int(numbers[choose(trials.where(numbers), goal, tolerance)])
    return Picked(trials.candidates[number], number, mode, verdict)


def in_question(trials: Trials[Candidate], stages: Stages, mode: SSRMode) -> np.ndarray:
    """Numbers of the plans with this mode and its ratios; at the layers that the stages name, if any was run there."""
    of_mode = [n for n, each in enumerate(trials.candidates) if has_paper_ratios(each, mode)]
    named = [
        n
        for n in of_mode
        if trials.candidates[n].ivr_layer in stages.ivr_tried
        and (mode == "none" or trials.candidates[n].ssr_layer in stages.ssr_tried)
    ]
    return np.array(named or of_mode, dtype=np.intp)


def has_paper_ratios(candidate: Candidate, mode: SSRMode) -> bool:
    """Is this a plan of the mode with the ratios that Table 9 has for it?"""
    retention, _, kept = PAPER[mode]
    return (candidate.ssr_mode, candidate.ivr_retention, candidate.ssr_retention) == (mode, retention, kept)


def cautious(stages: Stages) -> Candidate:
    """Where no stages were found: half of the tokens stay from half depth on."""
    return Candidate(stages.ivr_layer, 0.5, anchor_ratio(0.5))


def _at(trials: Trials[Candidate], candidate: Candidate, mode: SSRMode, verdict: ModeVerdict | None) -> Picked:
    number = trials.candidates.index(candidate) if candidate in trials.candidates else None
    return Picked(candidate, number, mode, verdict)
