"""VTW (Lin et al., AAAI 2025, arXiv 2405.05803): from which layer K on can all visual tokens go?

The first layer of which the KL of the next token says that it makes no difference. The trials engine runs every K on
what all of them share. Layers before the fifth are not looked at, as in the public code; in a model of fewer than its
32 layers, before the same share of the depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfv_accel import HalfVError
from halfv_accel.adapters import family_of
from halfv_accel.plan import Plan, Stage
from halfv_accel.strategies import KeepNone
from halfv_probe.calibration.measurements import Batch, Measurements
from halfv_probe.choice.layers import ETA, withdrawal_layer
from halfv_probe.methods.protocol import Calibrated, Found
from halfv_probe.trials.candidates import Alone
from halfv_probe.trials.outcomes import Replied
from halfv_probe.trials.replies import Replies
from halfv_probe.trials.walk import run_trials

FIRST, OF = 5, 32  # VTW's public code begins at 5, in a model of 32 layers


@dataclass(frozen=True)
class VTW(Calibrated):
    """Parameters
    ----------
    max_kl : float
        eta, the largest KL in nats that counts as no difference.
    """

    max_kl: float = ETA
    name = "vtw"

    @property
    def options(self) -> dict[str, float]:
        return {"max_kl": self.max_kl}

    def find(self, measure: Measurements, replied: Replied) -> Found:
        depth = len(family_of(measure.model).layers)

        def withdraw(_batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            plans = [Alone("withdraw", layer).plan() for layer in range(depth)]
            next_token = Replies([[0]] * len(inputs["input_ids"]))  # which one it is has no say in its distribution
            found = run_trials(measure.model, inputs, next_token, plans)
            return list(zip(found.kl.T.tolist(), found.same.int().T.tolist(), strict=True))

        outcomes = measure.each("withdrawal", withdraw)
        kl, same = (np.mean([each[part] for each in outcomes], axis=0) for part in range(2))
        layer, why = _chosen(kl.tolist(), self.max_kl)
        measured = {"withdrawal_kl": kl.tolist(), "withdrawal_agreement": same.tolist()}
        return Found(Plan((Stage("vtw", layer, KeepNone(), 0.0),)), why, measured)


def _chosen(kl: list[float], eta: float) -> tuple[int, str]:
    """K, and why; half of the depth, as the HalfV paper runs VTW (App. I.5), where no layer is good enough."""
    first, half = min(FIRST, round(FIRST * len(kl) / OF)), len(kl) // 2
    try:
        layer = withdrawal_layer(kl, eta, first)
    except HalfVError:
        least = min(kl[first:])
        return half, f"from layer {first} on, no KL is at most {eta:g} (the least is {least:.2g}): half of the depth"
    return layer, f"the first layer, from {first} on, with a KL of at most {eta:g} ({kl[layer]:.2g})"
