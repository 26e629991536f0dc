"""AdaVTP and its mixtures (submitted 2025): the mean effective rank of the pictures in front of this model's decoder.

Their thresholds and shares compare a picture's effective rank with that mean. The paper's constant is LLaVA-1.5's. It
is measured on what a strategy before the language model is shown, so without separators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from halfv_accel.methods import Facts
from halfv_accel.plan import Plan
from halfv_accel.plan_document import parameters_of
from halfv_accel.published import METHODS
from halfv_accel.strategies import STRATEGIES
from halfv_probe.calibration.measurements import Batch, Measurements
from halfv_probe.measures.vision import vision_effective_rank
from halfv_probe.methods.protocol import Calibrated, Found
from halfv_probe.trials.outcomes import Replied

ERANK_METHODS = tuple(name for name, method in METHODS.items() if name == "adavtp" or name.startswith("erank_"))


@dataclass(frozen=True)
class EffectiveRank(Calibrated):
    """Parameters
    ----------
    name : str
        One of `ERANK_METHODS`.
    retention : float, optional
        Visual tokens kept / all; the method's default plan if left out.
    """

    name: str
    retention: float | None = None

    @property
    def options(self) -> dict[str, float]:
        return {} if self.retention is None else {"retention": self.retention}

    def find(self, measure: Measurements, replied: Replied) -> Found:
        def rank(_batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            return vision_effective_rank(measure.model, inputs, separators=False).tolist()

        ranks = measure.each("effective rank", rank)
        mean = float(np.mean(ranks))
        [stage] = METHODS[self.name].stages(Facts.of(measure.model.config))
        if self.retention is not None:
            stage = replace(stage, retention=self.retention)
        strategy = STRATEGIES.build(self.name, {**parameters_of(stage.strategy), "erank_avg": mean})
        why = f"erank_avg is the mean effective rank of {len(ranks)} samples (standard deviation {np.std(ranks):.3g})"
        return Found(Plan((replace(stage, strategy=strategy),)), why, {"effective_rank": ranks})
