"""Keep no visual token: with `freeze` this is HalfV's layer-level inactivity (Eq. 7), with `drop` it is VTW."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfv_accel.decoder import Decoder
from halfv_accel.strategies.registry import View, register


@register("keep_none")
@dataclass(frozen=True)
class KeepNone:
    """The empty selection; its budget is always zero."""

    def select(self, view: View, budget: Tensor) -> Tensor:
        return torch.zeros_like(view.present)

    def flops(self, decoder: Decoder, candidates: int, kept: int) -> int:
        return 0
