"""Keep no visual token: with `freeze` this is HalfV's layer-level inactivity (Eq. 7), with `drop` it is VTW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.strategies.protocol import Needs, Sizes, View
from halfv_accel.strategies.registry import register


@register("keep_none")
@dataclass(frozen=True)
class KeepNone:
    """The empty selection; its budget is always zero."""

    needs: ClassVar[Needs] = Needs()

    def select(self, view: View, budget: Tensor) -> Tensor:
        return torch.zeros_like(view.present)

    def flops(self, sizes: Sizes) -> int:
        return 0
