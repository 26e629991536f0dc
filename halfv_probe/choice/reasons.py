"""Why a plan was chosen, one sentence a choice, for the table and the report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfv_accel.evidence import Goal
from halfv_probe.choice.choose import best_by_mode
from halfv_probe.choice.stages import Stages
from halfv_probe.trials.outcomes import Trials
from halfv_probe.trials.utility import marginal_utility


def explain(
    stages: Stages,
    goal: Goal,
    trials: Trials,
    best: int,
    pruned: Trials,
    layer_kl: NDArray[np.float64],
    suffix_kl: NDArray[np.float64],
) -> dict[str, str]:
    """Keys: ivr, ssr, mode, goal, and curve (what the entropy curve alone says)."""
    if goal.kind == "paper" and not stages.stable:
        return {**stages.reasons, "curve": stages.reasons["ivr"]}
    chosen = trials.candidates[best]
    reasons = {"goal": _goal(goal, trials, best), "curve": _curve(stages)}
    reasons["ivr"] = _ivr(stages, pruned, chosen.ivr_layer, chosen.ivr_retention)
    if chosen.ssr_layer is not None:
        frozen = (
            f"visual updates frozen in all layers from {chosen.ssr_layer} on cost {suffix_kl[chosen.ssr_layer]:.1e}"
        )
        instead = ", which drops tokens instead," if chosen.ssr_mode == "sparse" else ""
        reasons["ssr"] = f"{frozen} nats; the plan{instead} loses {trials.drop[best]:.1%}"
    reasons["mode"] = _mode(trials, best, layer_kl)
    return reasons


def _curve(stages: Stages) -> str:
    if not stages.stable:
        return stages.reasons["ssr"]
    return f"read off the entropy curve alone: IVR at {stages.ivr_layer}, SSR at {stages.ssr_layer}"


def _goal(goal: Goal, trials: Trials, best: int) -> str:
    tried = f"{len(trials.candidates)} plans run on {trials.lost.shape[1]} samples"
    lost = f"{int(trials.lost[best].sum())} of {trials.lost.shape[1]} answers lost"
    if goal.kind == "target_flops":
        return f"the most faithful of {tried} within {goal.value:.0%} of the FLOPs: {lost}"
    if goal.kind == "max_drop":
        return f"the cheapest of {tried} shown to lose at most {goal.value:.1%} ({goal.confidence:.0%} sure): {lost}"
    return f"the cheapest of {tried} at the paper's ratios within half a point of the most careful: {lost}"


def _ivr(stages: Stages, pruned: Trials, layer: int, retention: float) -> str:
    """Where the curve has its onset, and where pruning once has the smallest marginal utility near it."""
    if retention == 1:
        return "no first stage: all visual tokens are kept up to the second"
    nearest = min({c.ivr_retention for c in pruned.candidates}, key=lambda ratio: abs(ratio - retention))
    utility = {
        candidate.ivr_layer: marginal_utility(float(drop), float(1 - flops))
        for candidate, drop, flops in zip(pruned.candidates, pruned.drop, pruned.flops, strict=True)
        if candidate.ivr_retention == nearest
    }
    near = {number: value for number, value in utility.items() if abs(number - layer) <= 1}
    smallest = [number for number, value in near.items() if value == min(near.values())]
    onset = f"entropy falls by {stages.fall:.2f} nats behind layer {stages.ivr_layer}" if stages.stable else "no onset"
    rank = (
        "the smallest" if layer in smallest else f"not the smallest (layer {smallest[0]} has {min(near.values()):.3f})"
    )
    return f"{onset}; keeping {nearest:.0%} here has marginal utility {utility[layer]:.3f}, {rank} near it"


def _mode(trials: Trials, best: int, layer_kl: NDArray[np.float64]) -> str:
    """What KL says, and what both modes lose at the same cost."""
    chosen = trials.candidates[best]
    first = min(chosen.ssr_layer or chosen.ivr_layer, len(layer_kl) - 2)
    deep = float(layer_kl[first:-1].mean())  # nothing reads what the last layer does to visual tokens
    modes = best_by_mode(trials, float(trials.flops[best]))
    at_most = ", ".join(f"{mode} {drop:.0%}" for mode, drop in sorted(modes.items()))
    return f"a layer from {first} on is worth {deep:.1e} nats; lost at no more FLOPs: {at_most}"
