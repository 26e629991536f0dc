"""From a model, samples and a published method to a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from halfv_accel import Plan, Profile, accelerate
from halfv_accel.adapters import check_projections, family_of
from halfv_accel.evidence import Evidence, Measured
from halfv_accel.plan_document import PlanDocument
from halfv_accel.plan_text import describe_plan
from halfv_accel.profile import model_info
from halfv_accel.settings import Settings
from halfv_probe.calibration.calibrate import Inputs, calibration_of, check_model
from halfv_probe.calibration.journal import Journal
from halfv_probe.calibration.measurements import Batch, Measurements, Progress
from halfv_probe.choice.confidence import upper_bound
from halfv_probe.methods.protocol import Calibrated
from halfv_probe.trials.candidates import relative_flops
from halfv_probe.trials.outcomes import Replied
from halfv_probe.trials.replies import greedy_replies


def calibrate_method(
    model: PreTrainedModel,
    prompts: Inputs,
    method: Calibrated,
    settings: Settings | None = None,
    *,
    journal: Journal | None = None,
    progress: Progress = lambda step, done, total: None,
) -> Profile:
    """Measure what a method needs, choose its plan, and run it once on every sample.

    Parameters
    ----------
    model, prompts, settings, journal, progress
        As in `halfv_probe.calibrate`. Goal, k, latency and null model of the settings are HalfV's own and have no say.
    method : Calibrated
        `VTW`, `ShortV`, `FitPruneBudget`, `MatureLayer` or `EffectiveRank`.

    Raises
    ------
    HalfVError
        If the architecture or the method is not supported for this model, or what was asked cannot be met.
    ValueError
        If there is no prompt.
    """
    settings = settings or Settings()
    check_model(model)
    check_projections(family_of(model))
    method.check(len(family_of(model).layers))
    measure = Measurements(model, prompts, settings.fidelity, journal or Journal(), progress)
    measure.verify()
    replied = measure.replies()
    found = method.find(measure, replied)
    evidence = Evidence(
        measured=Measured(method=method.name, options=method.options, **found.measured),
        choices={method.name: found.why},
        untouched_accuracy=replied.accuracy,
        **found.evidence,
        **_result(measure, found.plan, replied, settings),
    )
    return Profile(
        model=model_info(model, settings.model_id),
        plan=PlanDocument.of(found.plan),
        calibration=calibration_of(model, settings, sum(measure.sizes)),
        evidence=evidence,
    )


def _result(measure: Measurements, plan: Plan, replied: Replied, settings: Settings) -> dict[str, Any]:
    """What the plan did, as fields of the evidence: the accelerated model replies to every sample."""

    def unchanged(batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
        expected = [replied.batches[batch.index].ids[row] for row in batch.rows]
        with accelerate(measure.model, plan):
            replies = greedy_replies(measure.model, inputs).ids
        return [mine == theirs for mine, theirs in zip(replies, expected, strict=True)]

    same = np.array(measure.each("plan", unchanged, key=f"plan {describe_plan(plan)}"))
    lost = replied.lost(same[None])[0]
    return {
        "flops": relative_flops(plan, measure.model.config, replied.visual, replied.text),
        "agreement": float(same.mean()),
        "drop": float(lost.mean()),
        "drop_bound": upper_bound(int(lost.sum()), len(lost), settings.goal.confidence),
    }
