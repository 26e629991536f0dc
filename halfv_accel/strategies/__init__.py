"""Which visual tokens stay. One file per strategy, registered there under its name and imported here.

A strategy is a frozen dataclass of its parameters with one method, `select(view, budget)`. It sees a `LayerView` and
returns a mask; masks, caches and positions belong to the engine. What else a strategy may have is in `protocol`.
"""

from __future__ import annotations

from halfv_accel.strategies.adavtp import AdaVTP
from halfv_accel.strategies.anchor_cover import AnchorCover
from halfv_accel.strategies.btp import BTP
from halfv_accel.strategies.cdpruner import CDPruner
from halfv_accel.strategies.cls_attention import ClsAttention
from halfv_accel.strategies.dart import Dart
from halfv_accel.strategies.divprune import DivPrune
from halfv_accel.strategies.erank_bat import ErankBat
from halfv_accel.strategies.erank_divprune import ErankDivPrune
from halfv_accel.strategies.erank_vispruner import ErankVisPruner
from halfv_accel.strategies.farthest_points import FarthestPoints
from halfv_accel.strategies.fastv import FastV
from halfv_accel.strategies.fitprune import FitPrune
from halfv_accel.strategies.hired import HiRED
from halfv_accel.strategies.holov import HoloV
from halfv_accel.strategies.infoprune import InfoPrune
from halfv_accel.strategies.keep_none import KeepNone
from halfv_accel.strategies.last_token_attention import LastTokenAttention
from halfv_accel.strategies.protocol import (
    Adaptive,
    Counted,
    CountedAdaptive,
    Merging,
    Needs,
    Places,
    ScoredBy,
    Signal,
    Sizes,
    Strategy,
    View,
    hides_separators,
    needs_of,
)
from halfv_accel.strategies.prumerge import PruMerge
from halfv_accel.strategies.random_choice import RandomChoice
from halfv_accel.strategies.registry import STRATEGIES, register, resolve
from halfv_accel.strategies.sparsevlm import SparseVLM
from halfv_accel.strategies.uniform_grid import UniformGrid
from halfv_accel.strategies.visionzip import VisionZip
from halfv_accel.strategies.vispruner import VisPruner

__all__ = [
    "BTP",
    "STRATEGIES",
    "AdaVTP",
    "Adaptive",
    "AnchorCover",
    "CDPruner",
    "ClsAttention",
    "Counted",
    "CountedAdaptive",
    "Dart",
    "DivPrune",
    "ErankBat",
    "ErankDivPrune",
    "ErankVisPruner",
    "FarthestPoints",
    "FastV",
    "FitPrune",
    "HiRED",
    "HoloV",
    "InfoPrune",
    "KeepNone",
    "LastTokenAttention",
    "Merging",
    "Needs",
    "Places",
    "PruMerge",
    "RandomChoice",
    "ScoredBy",
    "Signal",
    "Sizes",
    "SparseVLM",
    "Strategy",
    "UniformGrid",
    "View",
    "VisPruner",
    "VisionZip",
    "hides_separators",
    "needs_of",
    "register",
    "resolve",
]
