"""Many questions, answered a batch at a time by an accelerated model; what fails is a row of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from transformers import ProcessorMixin

from halfv_accel.downsample import Downsample, visual_tokens
from halfv_accel.engine.run import Run
from halfv_accel.processors import brief
from halfv_accel.prompts import batch_inputs

T = TypeVar("T")


class Asked(Protocol):
    """A question about pictures or a video (or None), opened when they are asked for; they may then fail to open."""

    @property
    def question(self) -> str: ...

    @property
    def images(self) -> Sequence[Any]: ...

    @property
    def video(self) -> Any: ...


@dataclass(frozen=True)
class Reply:
    """What became of one question: a text and its visual tokens, or the error.

    Parameters
    ----------
    text : str or None
        None where it failed.
    visual_tokens : int or None
        Before any stage, of the pictures as they were given.
    downsampled_to : int or None
        Those of the shrunk pictures, where they were shrunk.
    visual_tokens_after : tuple of int
        That each stage leaves to be processed; a frozen token is no longer. Empty where no stage ran.
    error : str or None
        Why there is no text, in a sentence.
    """

    text: str | None = None
    visual_tokens: int | None = None
    visual_tokens_after: tuple[int, ...] = ()
    error: str | None = None
    downsampled_to: int | None = None


def answer_many(
    run: Run,
    processor: ProcessorMixin,
    asked: Iterable[Asked],
    batch_size: int = 8,
    max_new_tokens: int = 64,
    downsample: Downsample | None = None,
) -> Iterator[list[Reply]]:
    """Generate greedily under the plan of an installed run.

    A batch that fails is tried again in halves, down to single questions; so an odd question costs nobody else the
    answer, and a batch that is too large for the memory is made smaller.

    Parameters
    ----------
    run : Run
        Installed: ``with accelerate(model, plan.inside) as run``.
    asked : iterable
        Read a batch at a time.
    downsample : Downsample, optional
        The plan's: pictures are shrunk first.

    Yields
    ------
    list of Reply
        Of each batch, in its order.
    """
    for batch in _batches(asked, batch_size):
        yield _replies(run, processor, batch, max_new_tokens, downsample)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _replies(
    run: Run, processor: ProcessorMixin, batch: Sequence[Asked], max_new_tokens: int, downsample: Downsample | None
) -> list[Reply]:
    try:
        return _together(run, processor, batch, max_new_tokens, downsample)
    except Exception as error:  # damaged files, refused prompts, full memory: any of them is this batch's own
        reason = _reason(error)
        full = isinstance(error, torch.OutOfMemoryError)
    if full:  # outside the except block, where the failed forward's tensors are gone
        torch.cuda.empty_cache()
    if len(batch) == 1:
        return [Reply(error=reason)]
    half = len(batch) // 2
    parts = (batch[:half], batch[half:])
    return [reply for part in parts for reply in _replies(run, processor, part, max_new_tokens, downsample)]


def _together(
    run: Run, processor: ProcessorMixin, batch: Sequence[Asked], max_new_tokens: int, downsample: Downsample | None
) -> list[Reply]:
    model = run.family.model
    turns = [(each.images, each.question, each.video) for each in batch]
    inputs = batch_inputs(processor, turns, model.device, downsample)
    run.last = None  # else that of an earlier batch, where this one has no pictures
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    report = run.last
    if report is None:  # not one picture
        return [Reply(text.strip(), 0) for text in texts]
    replies = [
        Reply(text.strip(), report.visual_tokens[row], tuple(stage.after[row] for stage in report.stages))
        for row, text in enumerate(texts)
    ]
    if downsample is None or downsample.keeps_everything:
        return replies
    before = [visual_tokens(processor, images) for images, *_ in turns]
    return [
        replace(reply, visual_tokens=whole, downsampled_to=reply.visual_tokens)
        for reply, whole in zip(replies, before, strict=True)
    ]


def _reason(error: Exception) -> str:
    """In one sentence; a bare KeyError or the like says its kind, too."""
    own = type(error).__module__.startswith("halfv_") or isinstance(error, OSError)
    return " ".join(str(error).split()) if own else f"{type(error).__name__}: {brief(error)}"
