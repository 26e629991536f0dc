"""What the last prefill did, for the caller to read."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfv_accel.plan import Then


class Stopwatch:
    """Milliseconds between two points, without waiting for the GPU until someone asks."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._ms: float | None = None
        self._start: Any = self._now()
        self._stop: Any = self._start

    def stop(self) -> Stopwatch:
        self._stop = self._now()
        return self

    @property
    def milliseconds(self) -> float:
        if self._ms is None:
            if self._cuda:
                self._stop.synchronize()
                self._ms = self._start.elapsed_time(self._stop)
            else:
                self._ms = (self._stop - self._start) * 1e3
        return self._ms

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(self._device):
            event.record()
        return event


@dataclass(frozen=True)
class StageReport:
    """One stage of one prefill.

    Parameters
    ----------
    name, layer, then
        As in the plan.
    before, after : list of int
        Visual tokens of each row that the layers processed before this stage, and process from it on.
    """

    name: str
    layer: int
    then: Then
    before: list[int]
    after: list[int]
    stopwatch: Stopwatch = field(repr=False, compare=False)

    @property
    def selection_ms(self) -> float:
        """Time spent on choosing tokens and laying out the rows, in milliseconds."""
        return self.stopwatch.milliseconds


@dataclass
class PrefillReport:
    """One prefill.

    Parameters
    ----------
    visual_tokens : list of int
        Visual tokens of each row before any stage.
    depth : int
        Decoder layers.
    stages : list of StageReport
        In the order in which they ran; empty for a text-only prompt.
    kept : list of (B, S) bool Tensor
        For each stage, the visual tokens that the layers go on processing, in the positions of the caller's input.
    skipped : list of (layer, list of bool)
        Layers that did not update visual tokens, and in which rows.
    """

    visual_tokens: list[int]
    depth: int
    stages: list[StageReport] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    skipped: list[tuple[int, list[bool]]] = field(default_factory=list)

    @property
    def average_visual_tokens(self) -> list[float]:
        """Visual tokens that a decoder layer processed, mean over layers: of each row.

        The field's unit for comparing methods inside the language model with those before it.
        """
        skipped = dict(self.skipped)
        total = [0] * len(self.visual_tokens)
        for layer in range(self.depth):
            active = self.visual_tokens
            for stage in self.stages:
                active = stage.after if stage.layer <= layer else active
            idle = skipped.get(layer, [False] * len(active))
            total = [n + (0 if idles else now) for n, now, idles in zip(total, active, idle, strict=True)]
        return [n / self.depth for n in total]
