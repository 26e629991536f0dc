"""How fast a model runs under a plan, beside the untouched model, in one process: ``halfv bench``."""

from halfv_accel.bench.break_even import BreakEven, find_break_even
from halfv_accel.bench.measure import compare
from halfv_accel.bench.prompts import build_prompt
from halfv_accel.bench.random_weights import build
from halfv_accel.bench.results import Comparison, provenance
from halfv_accel.plan_text import describe_plan, parse_plan

__all__ = [
    "BreakEven",
    "Comparison",
    "build",
    "build_prompt",
    "compare",
    "describe_plan",
    "find_break_even",
    "parse_plan",
    "provenance",
]
