"""Calibration: from a model and some samples to a profile (HalfV, Section 3.3 and Figure 5a).

Curves say where to look: the entropy of the visual tokens, and what each layer's work on them is worth. Trials decide:
plans are run on the samples, and what they lose is counted. So a curve that reads well and a plan that works cannot
part unnoticed.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedModel

from halfv_accel import HalfVError, Profile
from halfv_accel.adapters import check_projections, family_of
from halfv_accel.evidence import Evidence, Goal, Utility
from halfv_accel.plan import Fidelity
from halfv_accel.profile import IVR, SSR, Calibration, model_info
from halfv_probe.calibration.journal import Journal
from halfv_probe.calibration.measurements import CURVE_SAMPLES, FIRST_LOOK, Measurements, Progress
from halfv_probe.choice.choose import choose, chooser, contenders, finalists
from halfv_probe.choice.confidence import samples_needed, upper_bound, votes
from halfv_probe.choice.reasons import explain
from halfv_probe.choice.stages import Stages, detect_stages
from halfv_probe.measures.lifecycle import Lifecycle, check_k, lifecycle_of
from halfv_probe.trials.candidates import (
    Candidate,
    affordable,
    all_candidates,
    anchor_ratio,
    paper_candidates,
    utility_candidates,
)
from halfv_probe.trials.outcomes import Replied, Trials
from halfv_probe.trials.prompts import Prompts
from halfv_probe.trials.utility import latency_saved, marginal_utility

LATENCY_SAMPLES = 3
SECOND_LOOK = 300  # samples


def calibrate(
    model: PreTrainedModel,
    prompts: Sequence[Mapping[str, Any]] | Prompts,
    *,
    model_id: str,
    data: str,
    data_fingerprint: str,
    seed: int = 0,
    fidelity: Fidelity = "paper",
    k: int | float | str = "elbow",
    goal: Goal | None = None,
    latency: bool = False,
    journal: Journal | None = None,
    progress: Progress = lambda step, done, total: None,
) -> Profile:
    """Measure a model and choose where and how its visual tokens are reduced.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    prompts : sequence of mapping, or Prompts
        Processor outputs of one or several prompts each, padded on the left, on the model's device.
    model_id, data, data_fingerprint, seed
        Written into the profile; the seed also draws the bootstrap.
    fidelity : {"paper", "reference"}
        Where paper and public code part, which of them to follow.
    k : "elbow", int or float
        Eigenvalues that enter the entropy: found, given, or as many as hold this share of the energy.
    goal : Goal, optional
        The paper's ratios by default; or a drop not to exceed, or FLOPs to stay within.
    latency : bool
        Also measure by the clock what pruning saves. The choice does not depend on it.
    journal : Journal, optional
        Remembers what was measured, to go on after an interruption.
    progress : callable
        Called as ``progress(step, samples_done, samples)``.

    Returns
    -------
    Profile

    Raises
    ------
    HalfVError
        If the architecture is not supported, the model has fewer than four layers, or no plan reaches the goal.
    ValueError
        If there is no prompt.
    """
    goal = goal or Goal()
    depth = len(family_of(model).layers)
    if depth < 4:
        raise HalfVError(f"the model has {depth} decoder layers, too few for three stages: give one with at least 4")
    if model.device.type == "mps":
        raise HalfVError("calibration needs float64, which mps lacks: calibrate with --device cpu")
    check_k(k)
    check_projections(family_of(model))  # minutes earlier than the first accelerated run would
    measure = Measurements(model, prompts, fidelity, journal or Journal(), progress)
    _check_goal(goal, measure)
    measure.verify()
    lifecycle = lifecycle_of(measure.spectra(), fidelity, k)
    layer_kl, suffix_kl, suffix_same = measure.redundancies()
    stages = detect_stages(lifecycle.entropy["visual"], layer_kl.mean(axis=0))
    replied = measure.replies()
    pruned = measure.trials("marginal utility", list(utility_candidates(depth)), replied, CURVE_SAMPLES)
    trials = _trials(measure, goal, stages, replied, depth)
    best = choose(trials, goal)
    evidence = Evidence(
        **_curves(lifecycle),
        layer_kl=layer_kl.mean(axis=0).tolist(),
        suffix_kl=suffix_kl.mean(axis=0).tolist(),
        suffix_agreement=suffix_same.mean(axis=0).tolist(),
        utility=_utility(pruned, _latency(measure, pruned, latency)),
        trials=sorted((trials.trial(n) for n in range(len(trials.candidates))), key=lambda trial: trial.flops),
        votes=_votes(trials, goal, seed),
        curve_only={"ivr": stages.ivr_layer, "ssr": stages.ssr_layer} if stages.stable else {},
        goal=goal,
        choices=explain(stages, goal, trials, best, pruned, layer_kl.mean(axis=0), suffix_kl.mean(axis=0)),
        untouched_accuracy=replied.accuracy,
        **_result(trials, best, goal),
        stable=stages.stable,
    )
    return Profile(
        model=model_info(model, model_id),
        **_decision(trials.candidates[best]),
        calibration=Calibration(
            data=data,
            data_fingerprint=data_fingerprint,
            samples=sum(measure.sizes),
            seed=seed,
            fidelity=fidelity,
            versions=versions(),
        ),
        evidence=evidence,
    )


def _check_goal(goal: Goal, measure: Measurements) -> None:
    """Refuse a promise that the samples behind the second look could not show even if nothing were lost."""
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


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def neighbourhood(layer: int, depth: int) -> range:
    """Layers near the entropy curve's onset, a tenth of the depth on either side, at which IVR is tried."""
    reach = max(1, round(depth / 10))
    return range(max(1, layer - reach), min(depth - 1, layer + reach + 1))


def _trials(measure: Measurements, goal: Goal, stages: Stages, replied: Replied, depth: int) -> Trials:
    """The candidates that a goal asks for, run on all samples."""
    if goal.kind == "paper":
        if not stages.stable:
            return measure.trials("plans", [Candidate(stages.ivr_layer, 0.5, anchor_ratio(0.5))], replied)
        candidates = list(paper_candidates(depth, neighbourhood(stages.ivr_layer, depth)))
        return measure.trials("plans", candidates, replied)
    candidates = list(all_candidates(depth))
    if goal.kind == "target_flops":
        candidates = affordable(candidates, measure.model.config, replied.visual, replied.text, goal.value or 0.0)
    looked = measure.trials("first look", candidates, replied, FIRST_LOOK)
    seen = second_look(goal, sum(measure.sizes))
    looked = measure.trials("second look", finalists(looked, goal).candidates, replied, seen)
    # A promise is tested on samples that had no part in choosing the plans.
    start = seen if goal.kind == "max_drop" else 0
    return measure.trials("plans", contenders(looked, goal).candidates, replied, start=start)


def _votes(trials: Trials, goal: Goal, seed: int) -> dict[Any, dict[str, float]]:
    """How often each choice wins, of these candidates, when the samples are drawn anew."""
    if len(trials.candidates) == 1:
        return {}
    counted = votes(trials.lost.shape[1], chooser(trials, goal), seed)
    return dict(zip(("ivr", "ssr", "mode"), counted, strict=True))


def _decision(candidate: Candidate) -> dict[str, Any]:
    return {
        "ivr": IVR(layer=candidate.ivr_layer, retention=candidate.ivr_retention, anchor_ratio=candidate.anchor_ratio),
        "ssr": SSR(mode=candidate.ssr_mode, layer=candidate.ssr_layer, retention=candidate.ssr_retention),
    }


def _result(trials: Trials, best: int, goal: Goal) -> dict[str, Any]:
    """What the chosen plan did, as fields of the evidence."""
    lost, samples = int(trials.lost[best].sum()), trials.lost.shape[1]
    return {
        "flops": float(trials.flops[best]),
        "agreement": float(trials.same[best].mean()),
        "drop": lost / samples,
        "drop_bound": upper_bound(lost, samples, goal.confidence),
    }


def _utility(pruned: Trials, saved: Sequence[float | None]) -> list[Utility]:
    return [
        Utility(
            layer=candidate.ivr_layer,
            retention=candidate.ivr_retention,
            drop=float(drop),
            kl=float(kl),
            flops_saved=float(1 - flops),
            latency_saved=clock,
            utility=marginal_utility(float(drop), float(1 - flops)),
        )
        for candidate, drop, kl, flops, clock in zip(
            pruned.candidates, pruned.drop, pruned.kl.mean(axis=1), pruned.flops, saved, strict=True
        )
    ]


def _latency(measure: Measurements, pruned: Trials, wanted: bool) -> Sequence[float | None]:
    """Share of the prefill's time saved by each candidate, median over a few batches; None where not asked for."""
    if not wanted:
        return [None] * len(pruned.candidates)
    plans = [candidate.plan(measure.fidelity) for candidate in pruned.candidates]
    batches = range(min(LATENCY_SAMPLES, len(measure.sizes)))
    recall = measure.journal.recall
    found: list[NDArray[np.float64]] = []
    for index in batches:
        measure.progress("latency", index, len(batches))
        inputs = measure.prompts[index]
        found.append(np.array(recall(f"latency/{index}", lambda x=inputs: latency_saved(measure.model, x, plans))))  # type: ignore[misc]
    measure.progress("latency", len(batches), len(batches))
    return np.median(found, axis=0).tolist()


def _curves(lifecycle: Lifecycle) -> dict[str, Any]:
    """The lifecycle as fields of the evidence."""

    def plain(groups: Mapping[Any, NDArray[np.float64]]) -> dict[Any, list[float]]:
        return {group: curve.tolist() for group, curve in groups.items()}

    return {
        "k": lifecycle.k,
        "k_source": lifecycle.k_source,
        "entropy": plain(lifecycle.entropy),
        "entropy_std": plain(lifecycle.entropy_std),
        "tail_mass": plain(lifecycle.tail_mass),
        "full_entropy_low": lifecycle.full_entropy_low.tolist(),
        "full_entropy_high": lifecycle.full_entropy_high.tolist(),
        "effective_rank": lifecycle.effective_rank.tolist(),
        "participation_ratio": lifecycle.participation_ratio.tolist(),
        "curvature": lifecycle.curvature.tolist(),
        "turning": lifecycle.turning.tolist(),
        "spectrum": lifecycle.spectrum.tolist(),
    }
