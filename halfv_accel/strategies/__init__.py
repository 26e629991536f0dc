"""Which visual tokens stay. One file per strategy, registered there under its name and imported here.

A strategy is a frozen dataclass of its parameters with one method, `select(view, budget)`. It sees a `LayerView` and
returns a mask; masks, caches and positions belong to the engine. A second method, `flops`, counts what choosing costs.
"""

from __future__ import annotations

from halfv_accel.strategies.anchor_cover import AnchorCover
from halfv_accel.strategies.keep_none import KeepNone
from halfv_accel.strategies.last_token_attention import LastTokenAttention
from halfv_accel.strategies.random_choice import RandomChoice
from halfv_accel.strategies.registry import STRATEGIES, Counted, ScoredBy, Strategy, View, register, resolve

__all__ = [
    "STRATEGIES",
    "AnchorCover",
    "Counted",
    "KeepNone",
    "LastTokenAttention",
    "RandomChoice",
    "ScoredBy",
    "Strategy",
    "View",
    "register",
    "resolve",
]
