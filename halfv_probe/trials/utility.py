"""Marginal utility of pruning once (HalfV, Eq. 3 and 35, Appendix E): what it costs for what it saves.

MU(l, r) = -dM / (dC + eps), for one-shot pruning to the share r at layer l. Lower is better. dM is the change in task
performance; here, the share of samples whose right answer is lost, or, where no answers are known, whose reply changes.
dC is the share of the prefill that is saved, by exact FLOPs and, on request, by the clock. The paper measures latency
only and does not name eps; eps = 0.01 here, so that a plan which saves nothing is not a division by zero.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from halfv_accel import accelerate
from halfv_accel.plan import Plan

EPSILON = 0.01


def marginal_utility(drop: float, saved: float) -> float:
    """Eq. 3: `drop` is the share of answers lost, `saved` the share of the cost (FLOPs or seconds) that is saved.

    >>> marginal_utility(0.02, 0.39)
    0.05
    """
    return round(drop / (max(saved, 0.0) + EPSILON), 12)


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
