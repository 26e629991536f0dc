"""Calibration samples as model inputs, made when they are asked for: pictures of 100 samples need not fit a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import BatchFeature, ProcessorMixin

from halfv_accel.prompts import chat_inputs


class AskedPicture(Protocol):
    """A picture and a question, for example a ``halfv_data.Sample``."""

    @property
    def image(self) -> Any: ...

    @property
    def question(self) -> str: ...


@dataclass(frozen=True)
class Prompts:
    """Samples in a model's own chat format, one prompt each, on its device."""

    processor: ProcessorMixin
    samples: Sequence[AskedPicture]
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[BatchFeature]:
        for sample in self.samples:
            yield chat_inputs(self.processor, [sample.image], sample.question, self.device)
