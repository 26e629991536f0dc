"""ShortV (Yuan et al., 2025, arXiv 2504.00502): which layers need not update visual tokens?

Those whose absence changes the next token's distribution least, one layer at a time: the layer redundancy of HalfV's
Appendix F. How many they are is the user's, or the share of Table 10 of the HalfV paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfv_accel import HalfVError
from halfv_accel.plan import Plan
from halfv_probe.calibration.measurements import Batch, Measurements
from halfv_probe.choice.layers import ineffective_layers
from halfv_probe.measures.redundancy import redundancies
from halfv_probe.methods.protocol import Calibrated, Found
from halfv_probe.trials.outcomes import Replied

# Table 10: layers that skip visual tokens, of how many; by the start of the config's model type
SHARES = {"llava_next": (24, 32), "qwen": (19, 28)}
SHARE = (19, 32)  # LLaVA-1.5-7B; 24 of 40 in 13B is the same share


@dataclass(frozen=True)
class ShortV(Calibrated):
    """Parameters
    ----------
    layers : int, optional
        How many layers do not update visual tokens.
    """

    layers: int | None = None
    name = "shortv"

    @property
    def options(self) -> dict[str, float]:
        return {} if self.layers is None else {"layers": self.layers}

    def check(self, layers: int) -> None:
        if self.layers is not None and not 1 <= self.layers <= layers:
            raise HalfVError(f"layers is {self.layers}: the model has {layers}, so give a number from 1 to {layers}")

    def find(self, measure: Measurements, replied: Replied) -> Found:
        def terminate(_batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            return redundancies(measure.model, inputs, suffix=False).layer.tolist()

        kl = np.mean(measure.each("KL of layers", terminate), axis=0)
        depth, config = len(kl), measure.model.config
        count = usual_layers(config.model_type, depth) if self.layers is None else self.layers
        layers = ineffective_layers(kl, count)
        asked = "as many as in Table 10, by depth" if self.layers is None else "as many as were asked for"
        worst = max(kl[list(layers)])
        why = f"the {count} of {depth} layers with the least KL (at most {worst:.2g}), {asked}"
        return Found(Plan((), skip=layers), why, {}, {"layer_kl": kl.tolist()})


def usual_layers(model_type: str, depth: int) -> int:
    """The share of Table 10, scaled by depth; at least one layer."""
    some, all_ = next((share for kind, share in SHARES.items() if model_type.startswith(kind)), SHARE)
    return max(1, round(some * depth / all_))
