"""FitPrune (Ye et al., 2024, arXiv 2409.10197): how many tokens each layer can do without, for a budget of FLOPs.

The attention of the untouched model is measured once; bisection finds the smallest share of it to lose with which the
plan keeps to the budget. FLOPs are exact, and what choosing tokens at nearly every layer costs is in them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from halfv_accel import HalfVError
from halfv_accel.plan import Plan, Stage
from halfv_accel.strategies import FitPrune, KeepNone
from halfv_probe.calibration.measurements import Batch, Measurements
from halfv_probe.choice.attention_budget import attention_budget, tokens_at
from halfv_probe.measures.received import received_attention
from halfv_probe.methods.protocol import Calibrated, Found
from halfv_probe.trials.candidates import relative_flops
from halfv_probe.trials.outcomes import Replied

MOST = 1 - 2**-20  # of a layer's attention may be lost: the most attended token stays in it


@dataclass(frozen=True)
class FitPruneBudget(Calibrated):
    """Parameters
    ----------
    target_flops : float
        Share of the untouched prefill's exact FLOPs to stay within, selection included.
    """

    target_flops: float
    name = "fitprune"

    @property
    def options(self) -> dict[str, float]:
        return {"target_flops": self.target_flops}

    def find(self, measure: Measurements, replied: Replied) -> Found:
        def receive(_batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            return [(_packed(each.text), _packed(each.visual)) for each in received_attention(measure.model, inputs)]

        def cost(tokens: list[int]) -> float:
            stages = layer_stages(tokens)
            return relative_flops(Plan(stages), config, replied.visual, replied.text) if stages else 1.0

        config = measure.model.config
        received = measure.each("attention", receive)
        text, visual = ([_unpacked(each[part]) for each in received] for part in range(2))
        cheapest = cost(tokens_at(text, visual, replied.visual, MOST))
        if cheapest > self.target_flops:
            least = math.ceil(cheapest * 100) / 100
            raise HalfVError(f"FitPrune cannot save so much on these samples: ask for --target-flops {least:.2f}")
        found = attention_budget(text, visual, replied.visual, cost, self.target_flops, MOST)
        stages = layer_stages(found.tokens)
        if not stages:
            raise HalfVError(f"nothing has to go for {self.target_flops:g} of the FLOPs: give a share such as 0.5")
        why = f"each layer may lose {found.alpha:.2g} of its attention to and among visual tokens"
        measured = {
            "text_attention": np.mean([each.sum(axis=1) for each in text], axis=0).tolist(),
            "visual_attention": np.mean([each.sum(axis=1) for each in visual], axis=0).tolist(),
            "attention_lost": found.alpha,
        }
        return Found(Plan(stages), why, measured)


def layer_stages(tokens: Sequence[int]) -> tuple[Stage, ...]:
    """One stage for every layer that processes fewer visual tokens than the one before it."""
    stages: list[Stage] = []
    for layer in range(1, len(tokens)):
        left = tokens[layer]
        if left < tokens[layer - 1]:
            strategy = FitPrune() if left else KeepNone()
            stages.append(Stage(f"fitprune {len(stages) + 1}", layer, strategy, left / tokens[0]))
    return tuple(stages)


def _packed(attention: torch.Tensor) -> list[Any]:
    """Shape and float32 values as text: as numbers they would be four times as long."""
    return [list(attention.shape), base64.b64encode(attention.numpy().tobytes()).decode()]


def _unpacked(packed: list[Any]) -> np.ndarray:
    shape, values = packed
    return np.frombuffer(base64.b64decode(values), dtype=np.float32).reshape(shape).astype(np.float64)
