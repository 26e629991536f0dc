"""Keep no visual token: with `freeze` this is HalfV's layer-level inactivity (Eq. 7), with `drop` it is VTW."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfv_accel.strategies.registry import View


@dataclass(frozen=True)
class KeepNone:
    """The empty selection; its budget is always zero."""

    def select(self, view: View, budget: Tensor) -> Tensor:
        return torch.zeros_like(view.present)
