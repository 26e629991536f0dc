"""The speed that HalfV aims for, beside what reports say: ``python -m halfv_accel.bench.targets reports/bench``.

Each target reads the report of one interleaved `halfv bench`; where there is none, it is open, and the table says so.
A target is met, or missed, if the whole interval says so; otherwise it is not decided.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfv_accel.bench.measure import ACCELERATED

Interval = tuple[float, float, float]  # median, and its 95 % interval
Variants = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """A figure that some report should hold.

    Parameters
    ----------
    report : str
        File name without `.json`.
    read : callable
        The figure from the report's variants by name.
    limit : float
        Least value, or the largest one if `at_most`.
    shown : str
        Format of a figure.
    """

    where: str
    what: str
    report: str
    read: Callable[[Variants], Interval]
    limit: float
    at_most: bool = False
    shown: str = "{:.2f}"
    paper: str = "-"

    def row(self, folder: Path) -> str:
        """A line of the table."""
        sign = "<=" if self.at_most else ">="
        found = "not yet measured"
        path = folder / f"{self.report}.json"
        if path.is_file():
            variants = {each["name"]: each for each in json.loads(path.read_text())["comparisons"][0]["variants"]}
            median, low, high = self.read(variants)
            low, high = sorted((low, high))
            met, missed = low >= self.limit, high < self.limit
            if self.at_most:
                met, missed = high <= self.limit, low > self.limit
            verdict = "" if met else " (missed)" if missed else " (not decided)"
            figures = [self.shown.format(value) for value in (median, low, high)]
            found = f"{figures[0]} [{figures[1]}, {figures[2]}]{verdict}"
        return f"| {self.where} | {self.what} | {sign} {self.shown.format(self.limit)} | {found} | {self.paper} |"


def ratio(name: str) -> Callable[[Variants], Interval]:
    def read(variants: Variants) -> Interval:
        found = variants[ACCELERATED][name]
        return found["median"], found["low"], found["high"]

    return read


def cost(name: str) -> Callable[[Variants], Interval]:
    """Time in units of the untouched model's."""

    def read(variants: Variants) -> Interval:
        median, low, high = ratio(name)(variants)
        return 1 / median, 1 / high, 1 / low

    return read


def overhead(variants: Variants) -> Interval:
    """What a plan that keeps everything adds to the prefill, in percent."""
    median, low, high = cost("prefill_speedup")(variants)
    return 100 * (median - 1), 100 * (low - 1), 100 * (high - 1)


def selection(variants: Variants) -> Interval:
    """Percent of TTFT, and half of the interquartile range to both sides: no interval of a median."""
    share = variants[ACCELERATED]["quantities"]["selection_share"]
    return 100 * share["median"], 100 * (share["median"] - share["iqr"] / 2), 100 * (share["median"] + share["iqr"] / 2)


SPARSE, FREEZE = "CPU, `mid`, 1,200 visual tokens, 25 % from 1, 5 % from 9", "same, 50 % from 2, frozen from 6"
QWEN = "H200, qwen2.5-vl-7b, 2,352 + 50 tokens, Table 9"
LLAVA = "H200, llava-next-7b, 2,352 + 50 tokens, Table 9"
TARGETS = (
    Target(SPARSE, "efficiency", "cpu-sparse", ratio("efficiency"), 0.88),
    Target(FREEZE, "efficiency", "cpu-freeze", ratio("efficiency"), 0.88),
    Target(SPARSE, "decode, accelerated / untouched", "cpu-sparse", cost("decode_speedup"), 1.0, True),
    Target(FREEZE, "decode, accelerated / untouched", "cpu-freeze", cost("decode_speedup"), 1.0, True),
    Target("CPU, keep everything", "prefill overhead", "cpu-keep-all", overhead, 1.0, True, "{:.1f} %"),
    Target(
        QWEN, "LLM prefill speedup", "h200-qwen", ratio("prefill_speedup"), 3.5, shown="{:.2f}x", paper="TTFT 1.92x"
    ),
    Target(
        LLAVA, "LLM prefill speedup", "h200-llava", ratio("prefill_speedup"), 3, shown="{:.2f}x", paper="TTFT 1.89x"
    ),
    Target(QWEN, "selection / TTFT", "h200-qwen", selection, 1.0, True, "{:.1f} %", "6-10 %"),
    Target(LLAVA, "selection / TTFT", "h200-llava", selection, 1.0, True, "{:.1f} %", "6-10 %"),
    Target("H200, qwen2.5-vl-7b, batch 8 ragged", "efficiency", "h200-ragged", ratio("efficiency"), 0.85),
)


def table(folder: Path) -> str:
    """All targets, in Markdown."""
    head = ["| where | what | target | measured, with its 95 % interval | the paper |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(target.row(folder) for target in TARGETS)])


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else "reports/bench")))
