"""Why a plan was chosen: one sentence a choice, and each choice as curves, KL and trials make it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from halfv_accel.evidence import Choice, Goal, Utility, Verdict
from halfv_probe.choice.pick import Picked
from halfv_probe.choice.stages import Stages
from halfv_probe.trials.candidates import Candidate
from halfv_probe.trials.outcomes import Trials


def explain(
    stages: Stages,
    picked: Picked,
    goal: Goal,
    trials: Trials[Candidate],
    utility: Sequence[Utility],
    suffix_kl: np.ndarray,
) -> dict[str, str]:
    """Keys: ivr, ssr, mode, goal, and curve (what the curves alone say)."""
    if picked.number is None or (goal.kind == "paper" and not stages.stable):
        return {**stages.reasons, "curve": stages.reasons["ivr"]}
    chosen = picked.candidate
    reasons = {"goal": _goal(goal, trials, picked.number), "curve": _curve(stages)}
    reasons["ivr"] = _ivr(stages, utility, chosen.ivr_layer, chosen.ivr_retention)
    if chosen.ssr_layer is not None:
        frozen = f"freezing all layers from {chosen.ssr_layer} on costs {suffix_kl[chosen.ssr_layer]:.1e} nats"
        instead = ", which drops tokens instead," if chosen.ssr_mode == "sparse" else ""
        reasons["ssr"] = f"{frozen}; the plan{instead} loses {trials.drop[picked.number]:.1%}"
    by_kl = stages.reasons["mode"] if stages.stable else "no stages"
    reasons["mode"] = f"by KL: {stages.ssr_mode} ({by_kl})"
    if picked.verdict is not None:
        overruled = picked.verdict.mode not in (None, stages.ssr_mode)
        reasons["mode"] += f"; by trials{', which decide' if overruled else ''}: {picked.verdict.says}"
    return reasons


def verdicts(stages: Stages, picked: Picked) -> dict[Choice, Verdict]:
    """Each of L_IVR, L_SSR and the mode, by curve, by KL and by trials.

    By curve is visual entropy's word; by KL the layer KL's (L_IVR, the mode) or the suffix KL's (L_SSR).
    """
    chosen = picked.candidate
    alone = picked.verdict.mode if picked.verdict is not None else None
    by_kl = stages.ssr_mode if stages.stable else None
    modes = [each for each in (by_kl, alone) if each is not None]
    return {
        "ivr": _layers(_named(stages, "ivr", "visual entropy"), _named(stages, "ivr", "layer KL"), chosen.ivr_layer),
        "ssr": _layers(_named(stages, "ssr", "visual entropy"), _named(stages, "ssr", "suffix KL"), chosen.ssr_layer),
        "mode": Verdict(kl=by_kl, trials=alone, agree=len(set(modes)) <= 1),
    }


def _layers(curve: int | None, kl: int | None, trials: int | None) -> Verdict:
    named = [each for each in (curve, kl, trials) if each is not None]
    words = [None if each is None else str(each) for each in (curve, kl, trials)]
    return Verdict(
        curve=words[0], kl=words[1], trials=words[2], agree=max(named, default=0) - min(named, default=0) <= 1
    )


def _named(stages: Stages, choice: Literal["ivr", "ssr"], curve: str) -> int | None:
    return next((each.layer for each in stages.witnesses[choice] if each.curve == curve), None)


def _curve(stages: Stages) -> str:
    if not stages.stable:
        return stages.reasons["ssr"]
    agreed = "witnesses agree" if stages.agree("ivr") else f"witnesses do not agree: {stages.reasons['ivr']}"
    return f"read off the curves alone: IVR at {stages.ivr_layer} ({agreed}), SSR at {stages.ssr_layer}"


def _goal(goal: Goal, trials: Trials[Candidate], best: int) -> str:
    tried = f"{len(trials.candidates)} plans run on {trials.lost.shape[1]} samples"
    lost = f"{int(trials.lost[best].sum())} of {trials.lost.shape[1]} answers lost"
    if goal.kind == "target_flops":
        return f"the most faithful of {tried} within {goal.value:.0%} of the FLOPs: {lost}"
    if goal.kind == "max_drop":
        return f"the cheapest of {tried} shown to lose at most {goal.value:.1%} ({goal.confidence:.0%} sure): {lost}"
    return f"the cheapest of {tried} at the paper's ratios within half a point of the most careful: {lost}"


def _ivr(stages: Stages, utility: Sequence[Utility], layer: int, retention: float) -> str:
    """Where Stage I ends, and what pruning once costs at the nearest layer and ratio that were measured."""
    ends = f"Stage I ends at layer {stages.ivr_layer}" if stages.stable else "no end of Stage I"
    if retention == 1:
        return f"{ends}; no first stage: all visual tokens are kept up to the second"
    nearest = min(utility, key=lambda each: (abs(each.retention - retention), abs(each.layer - layer)))
    alike = [each for each in utility if each.retention == nearest.retention]
    least = min(alike, key=lambda each: each.utility)
    rank = "the smallest of all" if least.utility == nearest.utility else f"layer {least.layer} has {least.utility:.3f}"
    where = f"keeping {nearest.retention:.0%} at {nearest.layer} has marginal utility {nearest.utility:.3f}"
    return f"{ends}; {where}, {rank}"
