"""Which visual tokens stay. One file per strategy, one line per registration.

A strategy is a frozen dataclass of its parameters with one method, `select(view, budget)`. It sees a `LayerView` and
returns a mask; masks, caches and positions belong to the engine.
"""

from __future__ import annotations

from halfv_accel.strategies.anchor_cover import AnchorCover
from halfv_accel.strategies.keep_none import KeepNone
from halfv_accel.strategies.last_token_attention import LastTokenAttention
from halfv_accel.strategies.registry import Strategy, StrategyRegistry, View

STRATEGIES = StrategyRegistry()
register = STRATEGIES.register
resolve = STRATEGIES.resolve

register("anchor_cover", AnchorCover)
register("last_token_attention", LastTokenAttention)
register("keep_none", KeepNone)

__all__ = [
    "STRATEGIES",
    "AnchorCover",
    "KeepNone",
    "LastTokenAttention",
    "Strategy",
    "View",
    "register",
    "resolve",
]
