"""Calibration samples as model inputs, made when they are asked for: pictures of 100 samples need not fit a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from transformers import BatchFeature, ProcessorMixin

from halfv_accel import HalfVError
from halfv_accel.prompts import batch_inputs


class AskedPicture(Protocol):
    """Pictures, a question and, where it is known, the answer; for example a ``halfv_data.Sample``.

    It may also have a ``video`` (with ``load()``), a ``fingerprint`` that tells it from others, and a ``where`` that
    names it to its owner.
    """

    @property
    def images(self) -> Sequence[Any]: ...

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str | None: ...


S = TypeVar("S", bound=AskedPicture)


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
        return self.of(self.samples[index * self.rows : (index + 1) * self.rows])

    def of(self, samples: Sequence[AskedPicture]) -> BatchFeature:
        """Any samples as one batch; their pictures are decoded now, and let go."""
        return batch_inputs(self.processor, [turn(sample) for sample in samples], self.device)


def turn(sample: AskedPicture) -> tuple[Sequence[Any], str, Any]:
    """Pictures, question and video (or None) of a sample, decoded, as `batch_inputs` takes them."""
    video = getattr(sample, "video", None)
    return sample.images, sample.question, None if video is None else video.load()


def check_samples(
    processor: ProcessorMixin,
    samples: Sequence[S],
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> tuple[list[S], list[str]]:
    """Prepare every sample once, by itself, before anything is measured on the others.

    Parameters
    ----------
    processor : ProcessorMixin
    samples : sequence
        Each is decoded, prepared and let go.
    progress : callable
        Called as ``progress("checking samples", done, samples)``.

    Returns
    -------
    list, list of str
        The samples that can be used; and for each of the others a sentence that names it and says why not.
    """
    usable: list[S] = []
    refusals: list[str] = []
    for number, sample in enumerate(samples, 1):
        where = getattr(sample, "where", "") or f"sample {number}"
        try:
            pictures, question, video = turn(sample)
            if not pictures and video is None:
                raise HalfVError("it has neither picture nor video: give one")
            batch_inputs(processor, [(pictures, question, video)])
            usable.append(sample)
        except ValueError as error:  # HalfVError, and the error of whoever opens the pictures
            reason = str(error)
            refusals.append(reason if reason.startswith(where) else f"{where}: {reason}")
        progress("checking samples", number, len(samples))
    return usable, refusals
