"""Calibration: from a model and some samples to a profile (HalfV, Section 3.3 and Figure 5a).

Four steps: entropy curves, layer redundancy, choice of the stages, and a check of the resulting plan on the same
samples. The ratios are the paper's for the mode that was chosen (Table 9).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from halfv_accel import Profile, accelerate
from halfv_accel.adapters import check_projections, family_of
from halfv_accel.plan import Fidelity
from halfv_accel.profile import IVR, SSR, Calibration, Evidence, model_info
from halfv_probe.lifecycle import Lifecycle, measure_lifecycle
from halfv_probe.prompts import Prompts
from halfv_probe.redundancy import layer_redundancy
from halfv_probe.stages import Stages, detect_stages

# Table 9: the Qwen row for sparse, the LLaVA-1.5 rows for freeze.
RATIOS = {"sparse": (0.25, 0.1, 0.05), "freeze": (0.5, 0.2, None), "none": (0.5, 0.1, None)}
Progress = Callable[[str, int, int], None]


def calibrate(
    model: PreTrainedModel,
    prompts: Collection[Mapping[str, Any]] | Prompts,
    *,
    model_id: str,
    data: str,
    data_fingerprint: str,
    seed: int = 0,
    fidelity: Fidelity = "paper",
    progress: Progress = lambda step, done, total: None,
) -> Profile:
    """Measure a model and choose where and how its visual tokens are reduced.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    prompts : collection of mapping, or Prompts
        Processor outputs of one prompt each (batch size 1), on the model's device. They are gone through three times.
    model_id, data, data_fingerprint, seed
        Written into the profile.
    fidelity : {"paper", "reference"}
        Where paper and public code part, which of them to follow.
    progress : callable
        Called as ``progress(step, done, total)``.

    Returns
    -------
    Profile

    Raises
    ------
    HalfVError
        If the architecture is not supported.
    ValueError
        If there is no prompt, or the model has fewer than four layers.
    """
    check_projections(family_of(model))  # minutes earlier than the first accelerated run would
    lifecycle = measure_lifecycle(model, _watched(prompts, "entropy", progress), fidelity)
    kl = np.mean([layer_redundancy(model, p).numpy() for p in _watched(prompts, "layer redundancy", progress)], axis=0)
    stages = detect_stages(lifecycle.entropy["visual"], kl)
    retention, anchor_ratio, ssr_retention = RATIOS[stages.ssr_mode]
    profile = Profile(
        model=model_info(model, model_id),
        ivr=IVR(layer=stages.ivr_layer, retention=retention, anchor_ratio=anchor_ratio),
        ssr=SSR(
            mode=stages.ssr_mode,
            layer=None if stages.ssr_mode == "none" else stages.ssr_layer,
            retention=ssr_retention,
        ),
        calibration=Calibration(
            data=data,
            data_fingerprint=data_fingerprint,
            samples=lifecycle.samples,
            seed=seed,
            fidelity=fidelity,
            versions=versions(),
        ),
        evidence=_evidence(lifecycle, kl, stages),
    )
    agreement = measure_agreement(model, profile, _watched(prompts, "agreement", progress))
    return profile.model_copy(update={"evidence": profile.evidence.model_copy(update={"agreement": agreement})})


@torch.no_grad()
def measure_agreement(model: PreTrainedModel, profile: Profile, prompts: Iterable[Mapping[str, Any]]) -> float:
    """Share of prompts whose most likely next token the profile leaves unchanged."""
    same = []
    for prompt in prompts:
        untouched = model(**prompt, logits_to_keep=1).logits[0, -1].argmax()
        with accelerate(model, profile):
            same.append(bool(model(**prompt, logits_to_keep=1).logits[0, -1].argmax() == untouched))
    return sum(same) / len(same)


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def _evidence(lifecycle: Lifecycle, kl: np.ndarray, stages: Stages) -> Evidence:
    return Evidence(
        k=lifecycle.k,
        entropy={group: curve.tolist() for group, curve in lifecycle.entropy.items()},
        layer_kl=kl.tolist(),
        choices=stages.reasons,
        stable=stages.stable,
    )


def _watched(
    prompts: Collection[Mapping[str, Any]] | Prompts, step: str, progress: Progress
) -> Iterator[Mapping[str, Any]]:
    for done, prompt in enumerate(prompts):
        progress(step, done, len(prompts))
        yield prompt
    progress(step, len(prompts), len(prompts))
