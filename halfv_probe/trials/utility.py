"""Marginal utility of pruning once (HalfV, Eq. 3 and 35, Appendix E): what it costs for what it saves.

MU(l, r) = -dM / (dC + eps), for one-shot pruning to the share r at layer l. Lower is better. dM is the change in task
performance; here, the share of samples whose right answer is lost, or, where no answers are known, whose reply changes.
dC is the share of the prefill that is saved: by the clock where that was measured, as Eq. 35 says, and else by exact
FLOPs. The paper does not name eps; 0.01 here, so that a plan which saves nothing is not a division by zero.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from halfv_accel import accelerate
from halfv_accel.evidence import StageUtility, Utility
from halfv_accel.plan import Plan
from halfv_probe.trials.candidates import Candidate
from halfv_probe.trials.outcomes import Trials

EPSILON = 0.01


def marginal_utility(drop: float, saved: float) -> float:
    """Eq. 3: `drop` is the share of answers lost, `saved` the share of the cost (FLOPs or seconds) that is saved.

    >>> marginal_utility(0.02, 0.39)
    0.05
    """
    return round(drop / (max(saved, 0.0) + EPSILON), 12)


def utility_of(pruned: Trials[Candidate], clock: Sequence[float | None]) -> list[Utility]:
    """Marginal utility of every pruned plan: by the clock where `clock` has its saving, by exact FLOPs where not.

    Parameters
    ----------
    pruned : Trials
        Outcomes of plans that prune once.
    clock : sequence
        For each of them the share of the prefill's seconds that it saves, or None.
    """
    found = []
    for number, (candidate, seconds) in enumerate(zip(pruned.candidates, clock, strict=True)):
        did = pruned.results(number)
        flops = 1 - did["flops"]
        found.append(
            Utility(
                layer=candidate.ivr_layer,
                retention=candidate.ivr_retention,
                drop=did["drop"],
                kl=did["kl"],
                flops_saved=flops,
                latency_saved=seconds,
                utility=marginal_utility(did["drop"], flops if seconds is None else seconds),
            )
        )
    return found


def utility_by_stage(utility: Sequence[Utility], ivr: int, ssr: int) -> list[StageUtility]:
    """Table 1 for this model: means over the layers of a stage and over all ratios.

    Parameters
    ----------
    ivr, ssr : int
        The first layers of Stage II and of Stage III. Stage II starts with the nearest layer that was measured.
    """
    layers = sorted({each.layer for each in utility})
    start = min(layers, key=lambda layer: abs(layer - ivr))
    parts: dict[Literal["I", "II start", "II middle", "III"], list[int]] = {
        "I": [layer for layer in layers if layer < start],
        "II start": [start],
        "II middle": [layer for layer in layers if start < layer < ssr],
        "III": [layer for layer in layers if layer >= ssr and layer != start],
    }
    found = []
    for stage, members in parts.items():
        cells = [each for each in utility if each.layer in members]
        if cells:
            saved = [each.flops_saved if each.latency_saved is None else each.latency_saved for each in cells]
            means = {"saved": statistics.mean(saved), "utility": statistics.mean(each.utility for each in cells)}
            found.append(StageUtility(stage=stage, layers=members, **means))
    return found


@torch.no_grad()
def latency_saved(
    model: PreTrainedModel, inputs: Mapping[str, Any], plans: Sequence[Plan], repeats: int = 5
) -> list[float]:
    """Share of the prefill's seconds that each plan saves: 1 - median / median of the untouched model.

    The runs are interleaved, because on a busy machine only neighbours in time can be compared; every plan is warmed up
    once. Negative where choosing tokens costs more than it saves.
    """
    contexts = [None, *plans]
    seconds: list[list[float]] = [[] for _ in contexts]
    for repeat in range(repeats + 1):
        for plan, times in zip(contexts, seconds, strict=True):
            with nullcontext() if plan is None else accelerate(model, plan):
                _synchronise(model)
                started = time.perf_counter()
                model(**inputs, use_cache=False, logits_to_keep=1)
                _synchronise(model)
            if repeat:
                times.append(time.perf_counter() - started)
    untouched, *pruned = (statistics.median(times) for times in seconds)
    return [1 - each / untouched for each in pruned]


def _synchronise(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
