"""Calibration samples as model inputs, made when they are asked for: pictures of 100 samples need not fit a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import BatchFeature, ProcessorMixin

from halfv_accel.prompts import batch_inputs


class AskedPicture(Protocol):
    """A picture, a question and, where it is known, the answer; for example a ``halfv_data.Sample``."""

    @property
    def image(self) -> Any: ...

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str | None: ...


@dataclass(frozen=True)
class Prompts:
    """Samples in a model's own chat format, ``batch_size`` at a time, padded on the left, on its device.

    Where the tokenizer has no padding token, batches hold one prompt.
    """

    processor: ProcessorMixin
    samples: Sequence[AskedPicture]
    device: torch.device | str = "cpu"
    batch_size: int = 1

    @property
    def rows(self) -> int:
        """Prompts in a full batch."""
        tokenizer = getattr(self.processor, "tokenizer", None)
        return self.batch_size if getattr(tokenizer, "pad_token_id", None) is not None else 1

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.samples) // self.rows)

    def __iter__(self) -> Iterator[BatchFeature]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> BatchFeature:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        batch = self.samples[index * self.rows : (index + 1) * self.rows]
        turns = [([sample.image], sample.question) for sample in batch]
        return batch_inputs(self.processor, turns, self.device)
