"""Which visual tokens stay. One file per strategy, registered there under its name and imported here.

A strategy is a frozen dataclass of its parameters with one method, `select(view, budget)`. It sees a `LayerView` and
returns a mask; masks, caches and positions belong to the engine. What else a strategy may have is in `protocol`.
"""

from __future__ import annotations

from halfv_accel.strategies.anchor_cover import AnchorCover
from halfv_accel.strategies.btp import BTP
from halfv_accel.strategies.dart import Dart
from halfv_accel.strategies.fastv import FastV
from halfv_accel.strategies.fitprune import FitPrune
from halfv_accel.strategies.keep_none import KeepNone
from halfv_accel.strategies.last_token_attention import LastTokenAttention
from halfv_accel.strategies.protocol import (
    Adaptive,
    Counted,
    Merging,
    Needs,
    Places,
    ScoredBy,
    Sizes,
    Strategy,
    View,
    needs_of,
)
from halfv_accel.strategies.random_choice import RandomChoice
from halfv_accel.strategies.registry import STRATEGIES, register, resolve
from halfv_accel.strategies.sparsevlm import SparseVLM

__all__ = [
    "BTP",
    "STRATEGIES",
    "Adaptive",
    "AnchorCover",
    "Counted",
    "Dart",
    "FastV",
    "FitPrune",
    "KeepNone",
    "LastTokenAttention",
    "Merging",
    "Needs",
    "Places",
    "RandomChoice",
    "ScoredBy",
    "Sizes",
    "SparseVLM",
    "Strategy",
    "View",
    "needs_of",
    "register",
    "resolve",
]
