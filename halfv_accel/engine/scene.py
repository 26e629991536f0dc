"""What is known of the pictures of one prefill: where their tokens are, and what the vision tower made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halfv_accel.engine.rows import Rows
from halfv_accel.strategies import Places, Signal


@dataclass(frozen=True)
class Scene:
    """Structure at full length [B, S], and the tower's signals."""

    structure: Any
    signals: Any = None

    def places(self, visual: Rows) -> Places:
        """Of some tokens: [B, V]."""
        raise NotImplementedError

    def signal(self, signal: Signal, layer: int, visual: Rows) -> Tensor:
        """Of some tokens; 0 on padding and on separators."""
        raise NotImplementedError
