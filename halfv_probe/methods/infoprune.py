"""InfoPrune (submitted 2025): from which layer on is the next token decided?

Its second stage cuts where the language model has matured: from there on the most likely next token, read from the last
token's state at every layer boundary, stays what it is (Section 2.2, Figure 15). The paper shows the grids and then
sets K by hand, in the middle. Here the cut is at the boundary from which on half of the samples have matured: the
median, which has no unit and no threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from halfv_accel.methods import Facts
from halfv_accel.plan import Plan
from halfv_accel.published import METHODS
from halfv_probe.calibration.measurements import Batch, Measurements
from halfv_probe.measures.maturity import semantic_maturity
from halfv_probe.methods.protocol import Calibrated, Found
from halfv_probe.trials.outcomes import Replied


@dataclass(frozen=True)
class MatureLayer(Calibrated):
    """InfoPrune with its second stage where the model at hand has matured."""

    name = "infoprune"

    @property
    def options(self) -> dict[str, float]:
        return {}

    def find(self, measure: Measurements, replied: Replied) -> Found:
        def mature(_batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            return semantic_maturity(measure.model, inputs).stable_from.tolist()

        stable = np.array(measure.each("semantic maturity", mature))
        facts = Facts.of(measure.model.config)
        layer = mature_layer(stable, facts.layers)
        first, second = METHODS["infoprune"].stages(facts)
        plan = Plan((first, replace(second, layer=layer)))
        why = f"from layer {layer} on, half of the samples no longer change their next token"
        shares = [float((stable <= boundary).mean()) for boundary in range(facts.layers + 1)]
        return Found(plan, why, {}, {"maturity": shares})


def mature_layer(stable_from: np.ndarray, layers: int) -> int:
    """The layer in front of which half of the samples have matured.

    Parameters
    ----------
    stable_from : (n,) int array
        Of each sample, the first boundary from which on its next token stays; boundary l is the input of layer l.
    layers : int
        Decoder layers; the cut is at one from 1 on, and at the last at the latest.
    """
    return min(max(math.ceil(float(np.median(stable_from))), 1), layers - 1)
