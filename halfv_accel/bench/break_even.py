"""From how many visual tokens on does a plan pay off on this machine?

Choosing tokens and laying out rows takes time of its own. On a short prompt that is more than it saves; there the
untouched model is the faster one, and a profile can say so (`min_visual_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from halfv_accel.bench.measure import ACCELERATED, interleave, measure, prepared, warm_up_rounds
from halfv_accel.bench.prompts import build_prompt
from halfv_accel.bench.results import UNTOUCHED, Quantity, Ratio
from halfv_accel.plan import Plan

SMALLEST, FACTOR, UNIT = 32, 1.5, 16  # visual tokens; multiples of the unit fill pictures that are no mere strips


@dataclass(frozen=True)
class Size:
    """Prefill at one number of visual tokens a row; `speedup` is untouched / accelerated, round by round."""

    visual_tokens: int
    untouched_ms: Quantity
    accelerated_ms: Quantity
    speedup: Ratio


@dataclass(frozen=True)
class BreakEven:
    """The smallest measured number from which on every measured size is faster, or None; and all sizes."""

    visual_tokens: int | None
    sizes: list[Size]

    @property
    def certain(self) -> bool:
        """Is the plan faster at all these sizes beyond what chance explains?"""
        paying = [size for size in self.sizes if self.visual_tokens and size.visual_tokens >= self.visual_tokens]
        return bool(paying) and all(size.speedup.low > 1 for size in paying)

    @classmethod
    def of(cls, sizes: Sequence[Size]) -> BreakEven:
        ordered = sorted(sizes, key=lambda size: size.visual_tokens)
        found = None
        for size in reversed(ordered):
            if size.speedup.median <= 1:
                break
            found = size.visual_tokens
        return cls(found, ordered)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def grid(largest: int) -> list[int]:
    """Sizes to try, about half as many again each time, up to the largest."""
    sizes, size = {largest}, float(SMALLEST)
    while size < largest:
        sizes.add(min(largest, UNIT * round(size / UNIT)))
        size *= FACTOR
    return sorted(sizes)


def find_break_even(
    model: Any,
    plan: Plan,
    largest: int,
    text_tokens: int = 50,
    batch: int = 1,
    rounds: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BreakEven:
    """Time the prefill of the untouched model and of the plan at growing numbers of visual tokens.

    Parameters
    ----------
    plan : Plan
        Its own `min_visual_tokens` is left aside.
    largest : int
        Most visual tokens a row.
    progress : callable
        Called with the sizes that are done, and with all of them.
    """
    made = {UNTOUCHED: None, ACCELERATED: prepared(model, replace(plan, min_visual_tokens=0))}
    sizes: dict[int, Size] = {}  # by what the prompts hold: not every architecture can have every number
    wanted = grid(largest)
    for done, count in enumerate(wanted):
        prompt = build_prompt(model, count, text_tokens, batch, seed=seed)
        visual = prompt.visual[0]
        if visual not in sizes:
            runs = {name: partial(measure, model, prompt, run, 1) for name, run in made.items()}
            readings = interleave(runs, rounds, warm_up_rounds(model), seed)
            times = {name: [reading.prefill_ms for reading in of] for name, of in readings.items()}
            sizes[visual] = size_of(visual, times[UNTOUCHED], times[ACCELERATED], seed)
        progress(done + 1, len(wanted))
    return BreakEven.of(list(sizes.values()))


def size_of(visual: int, untouched: list[float], accelerated: list[float], seed: int = 0) -> Size:
    """Summarise the prefill times of one size, in ms, round by round."""
    ratios = [was / now for was, now in zip(untouched, accelerated, strict=True)]
    return Size(visual, Quantity.of_all(untouched), Quantity.of_all(accelerated), Ratio.of(ratios, seed))
