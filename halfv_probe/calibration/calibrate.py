"""Calibration: from a model and some samples to a profile (HalfV, Section 3.3 and Figure 5a).

Curves say where to look: entropies, attention, what each layer's work on visual tokens is worth. Trials decide: first
the second stage alone, for the mode; then plans of that mode, for the layers. What they lose is counted, so a curve
that reads well and a plan that works cannot part unnoticed.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedModel

from halfv_accel import HalfVError, Profile
from halfv_accel.adapters import check_projections, family_of
from halfv_accel.evidence import Choice, Evidence, Isolated, NullModel, Trial
from halfv_accel.profile import IVR, SSR, Calibration, model_info
from halfv_accel.settings import Settings
from halfv_probe.calibration.journal import Journal
from halfv_probe.calibration.measurements import CURVE_SAMPLES, Measurements, Progress
from halfv_probe.calibration.search import Search, check_goal
from halfv_probe.choice.choose import chooser
from halfv_probe.choice.confidence import upper_bound, votes
from halfv_probe.choice.findings import Findings, findings_of
from halfv_probe.choice.holds import Known, holds
from halfv_probe.choice.pick import Picked, in_question, pick, settle_mode
from halfv_probe.choice.reasons import explain, verdicts
from halfv_probe.choice.stages import Stages
from halfv_probe.measures.lifecycle import Lifecycle, check_k, lifecycle_of
from halfv_probe.trials.candidates import Alone, Candidate, alone_candidates, utility_candidates
from halfv_probe.trials.outcomes import Replied, Trials
from halfv_probe.trials.prompts import Prompts
from halfv_probe.trials.utility import latency_saved, utility_by_stage, utility_of

LATENCY_SAMPLES = 3
Inputs = Sequence[Mapping[str, Any]] | Prompts


def calibrate(
    model: PreTrainedModel,
    prompts: Inputs,
    settings: Settings | None = None,
    *,
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
    settings : Settings, optional
        Names, goal, k and the rest; they are written into the profile.
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
    settings = settings or Settings()
    check_model(model)
    check_k(settings.k)
    check_projections(family_of(model))  # minutes earlier than the first accelerated run would
    measure = Measurements(model, prompts, settings.fidelity, journal or Journal(), progress)
    check_goal(settings.goal, measure)
    measure.verify()
    findings, lifecycle, suffix_same = _findings(measure, settings)
    stages, replied = findings.stages(), measure.replies()
    pruned = measure.trials("marginal utility", list(utility_candidates(stages.depth)), replied, CURVE_SAMPLES)
    utility = utility_of(pruned, _latency(measure, pruned, settings.latency))
    alone = _alone(measure, stages, replied)
    mode, _ = settle_mode(stages, alone)
    trials, start = Search(measure, settings.goal, replied, stages.depth).run(stages, mode)
    known = Known(findings, alone, trials, settings.goal, measure.tasks(start))
    picked = pick(stages, alone, trials, settings.goal)
    evidence = Evidence(
        **_curves(lifecycle),
        **_more_curves(findings, suffix_same),
        witnesses={choice: list(found) for choice, found in stages.witnesses.items()},
        isolated=_isolated(alone),
        verdicts=verdicts(stages, picked),
        holds=holds(known),
        utility=utility,
        utility_by_stage=utility_by_stage(utility, stages.ivr_layer, stages.ssr_layer) if stages.stable else [],
        trials=_trials(trials),
        votes=_votes(known, picked, stages, settings.seed),
        curve_only={"ivr": stages.ivr_layer, "ssr": stages.ssr_layer} if stages.stable else {},
        goal=settings.goal,
        choices=explain(stages, picked, settings.goal, trials, utility, findings.suffix_kl.mean(axis=0)),
        untouched_accuracy=replied.accuracy,
        **_result(trials, picked, settings),
        stable=stages.stable,
    )
    return _profile(model, settings, picked.candidate, evidence, sum(measure.sizes))


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model that cannot be calibrated, whatever for.

    Raises
    ------
    HalfVError
    """
    family = family_of(model)
    depth = len(family.layers)
    if family.ranks is not None:
        raise HalfVError(
            f"the model is divided among {family.ranks.size} processes, and calibration decides in one: load it with "
            "device_map='auto' to calibrate; the profile then serves the divided model"
        )
    if depth < 4:
        raise HalfVError(f"the model has {depth} decoder layers, too few for three stages: give one with at least 4")
    if model.device.type == "mps":
        raise HalfVError("calibration needs float64, which mps lacks: calibrate with --device cpu")


def _findings(measure: Measurements, settings: Settings) -> tuple[Findings, Lifecycle, NDArray[np.bool_]]:
    """All curves, sample by sample; and how often the next token survives a frozen suffix, [n, L]."""
    curves = measure.curves()
    layer_kl, suffix_kl, suffix_same = measure.redundancies()
    findings, lifecycle = findings_of(curves, layer_kl, suffix_kl, settings.fidelity, settings.k)
    if settings.null_samples:
        spectra, null_kl = measure.null(settings.null_samples, settings.seed)
        entropy = lifecycle_of(spectra, settings.fidelity, findings.k).entropy
        null = NullModel(
            seed=settings.seed,
            samples=len(spectra),
            entropy={group: curve.tolist() for group, curve in entropy.items()},
            layer_kl=null_kl.tolist(),
        )
        findings = replace(findings, null=null)
    return findings, lifecycle, suffix_same


def _alone(measure: Measurements, stages: Stages, replied: Replied) -> Trials[Alone] | None:
    """The second stage alone, at every layer in question; not asked where there are no stages."""
    if not stages.stable:
        return None
    return measure.trials("second stage alone", list(alone_candidates(stages.ssr_tried)), replied, CURVE_SAMPLES)


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def calibration_of(model: PreTrainedModel, settings: Settings, samples: int) -> Calibration:
    """Where a profile's numbers come from."""
    return Calibration(
        data=settings.data,
        data_fingerprint=settings.data_fingerprint,
        samples=samples,
        seed=settings.seed,
        fidelity=settings.fidelity,
        versions=versions(),
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        settings=settings,
    )


def _votes(known: Known, picked: Picked, stages: Stages, seed: int) -> dict[Choice, dict[str, float]]:
    """How often each choice wins when samples are drawn anew: layers among plans in question, the mode by itself."""
    goal, trials = known.goal, known.trials
    if picked.number is None or len(trials.candidates) == 1 or (goal.kind == "paper" and not stages.stable):
        return {}
    if goal.kind == "paper":
        trials = trials.where(in_question(trials, stages, picked.mode))
    ivr, ssr, mode = votes(trials.lost.shape[1], chooser(trials, goal), seed)
    alone = known.alone
    if goal.kind == "paper" and alone is not None:
        (mode,) = votes(alone.lost.shape[1], lambda drawn: (settle_mode(stages, alone.of(drawn))[0],), seed)
    return {"ivr": ivr, "ssr": ssr, "mode": mode}


def _profile(
    model: PreTrainedModel, settings: Settings, chosen: Candidate, evidence: Evidence, samples: int
) -> Profile:
    return Profile(
        model=model_info(model, settings.model_id),
        ivr=IVR(
            layer=chosen.ivr_layer,
            retention=chosen.ivr_retention,
            anchor_ratio=chosen.anchor_ratio,
            scored_by=chosen.ivr_scored_by,
        ),
        ssr=SSR(
            mode=chosen.ssr_mode,
            layer=chosen.ssr_layer,
            retention=chosen.ssr_retention,
            scored_by=chosen.ssr_scored_by,
        ),
        calibration=calibration_of(model, settings, samples),
        evidence=evidence,
    )


def _result(trials: Trials[Candidate], picked: Picked, settings: Settings) -> dict[str, Any]:
    """What the chosen plan did, as fields of the evidence."""
    if picked.number is None:
        return {}
    found = trials.results(picked.number)
    lost, samples = int(trials.lost[picked.number].sum()), found["samples"]
    bound = upper_bound(lost, samples, settings.goal.confidence)
    return {"flops": found["flops"], "agreement": found["agreement"], "drop": found["drop"], "drop_bound": bound}


def _trials(trials: Trials[Candidate]) -> list[Trial]:
    """All plans that were run, the cheapest first."""
    found = [Trial(**vars(each), **trials.results(number)) for number, each in enumerate(trials.candidates)]
    return sorted(found, key=lambda trial: trial.flops)


def _isolated(alone: Trials[Alone] | None) -> list[Isolated]:
    if alone is None:
        return []
    return [Isolated(**vars(each), **alone.results(number)) for number, each in enumerate(alone.candidates)]


def _latency(measure: Measurements, pruned: Trials[Candidate], wanted: bool) -> Sequence[float | None]:
    """Share of the prefill's time saved by each candidate, median over a few batches; None where not asked for."""
    if not wanted:
        return [None] * len(pruned.candidates)
    plans = [candidate.plan(measure.fidelity) for candidate in pruned.candidates]
    batches = range(min(LATENCY_SAMPLES, len(measure.sizes)))
    found: list[NDArray[np.float64]] = []
    for index in batches:
        measure.progress("latency", index, len(batches))
        key = f"latency/{' '.join(measure.names[index])}"
        seconds = measure.journal.recall(key, lambda i=index: latency_saved(measure.model, measure.prompts[i], plans))  # type: ignore[misc]
        found.append(np.array(seconds))
    measure.progress("latency", len(batches), len(batches))
    return np.median(found, axis=0).tolist()


def _more_curves(findings: Findings, suffix_same: NDArray[np.bool_]) -> dict[str, Any]:
    """What `Findings` holds beside the lifecycle, as fields of the evidence."""
    attention = findings.attention()
    return {
        "layer_kl": findings.layer_kl.mean(axis=0).tolist(),
        "suffix_kl": findings.suffix_kl.mean(axis=0).tolist(),
        "suffix_agreement": suffix_same.mean(axis=0).tolist(),
        "entropy_by_k": findings.by_k(),
        "attention_to_visual": [] if attention is None else attention.clip(0, 1).tolist(),
        "maturity": findings.maturity().tolist(),
        "null": findings.null,
    }


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
