"""One question, answered by an accelerated model and, for comparison, by the untouched one; and when it is right."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from halfv_accel.adapters import family_of
from halfv_accel.engine.report import PrefillReport
from halfv_accel.engine.run import accelerate
from halfv_accel.errors import HalfVError
from halfv_accel.flops import as_it_ran, prefill_flops
from halfv_accel.plan import Plan

REPEATS = 5


@dataclass(frozen=True)
class StageCount:
    """Visual tokens that a stage leaves: kept (``drop``) or still updated (``freeze``)."""

    name: str
    layer: int
    then: str
    after: int


@dataclass(frozen=True)
class Timed:
    """An answer and the median seconds of a whole ``generate`` call."""

    text: str
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What ``answer`` found.

    ``flops_ratio`` is the decoder's prefill arithmetic, accelerated / untouched, ``average_visual_tokens`` what a
    decoder layer processed of them, mean over layers; ``skipped`` layers did not update them. ``visual_tokens`` are
    those of the pictures as they were given, ``downsampled_to`` those of the shrunk ones, if they were.
    """

    text: str
    visual_tokens: int
    stages: tuple[StageCount, ...]
    average_visual_tokens: float
    skipped: tuple[int, ...]
    flops_ratio: float
    seconds: float
    repeats: int
    untouched: Timed | None = None
    downsampled_to: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, Any],
    plan: Plan,
    max_new_tokens: int = 64,
    compare: bool = False,
    whole: Mapping[str, Any] | None = None,
) -> Answer:
    """Generate greedily under a plan.

    Parameters
    ----------
    inputs : mapping
        One prompt (batch size 1), as the processor returns it.
    compare : bool
        Also ask the untouched model; both are then warmed up and run ``REPEATS`` times in turn, because on a busy
        machine only interleaved runs can be compared.
    whole : mapping, optional
        Needed where the plan shrinks pictures, and `inputs` are of the shrunk ones: the same prompt with the pictures
        as they are, which the untouched model is asked with.
    """
    if plan.shrinks and whole is None:
        raise HalfVError("the plan shrinks pictures: give the prompt with the pictures as they are, too, as whole")
    before = inputs if whole is None else whole

    def once(context: AbstractContextManager, asked: Mapping[str, Any] = inputs) -> tuple[torch.Tensor, float]:
        with context:
            _synchronise(model)
            started = time.perf_counter()
            ids = model.generate(**asked, max_new_tokens=max_new_tokens, do_sample=False)
            _synchronise(model)
        return ids[0, asked["input_ids"].shape[1] :], time.perf_counter() - started

    def text(ids: torch.Tensor) -> str:
        return processor.decode(ids, skip_special_tokens=True).strip()

    repeats = REPEATS if compare else 1
    times: dict[str, list[float]] = {"untouched": [], "accelerated": []}
    with accelerate(model, plan.inside) as run:
        ids, seconds = once(nullcontext())
    report = run.last or PrefillReport([0], model.config.get_text_config().num_hidden_layers)
    untouched = once(nullcontext(), before)[0] if compare else None
    for _ in range(repeats if compare else 0):
        times["untouched"].append(once(nullcontext(), before)[1])
        times["accelerated"].append(once(accelerate(model, plan.inside))[1])
    if compare:
        seconds = statistics.median(times["accelerated"])
    left = report.visual_tokens[0]
    prompt_text = inputs["input_ids"].shape[1] - left
    visual = int(family_of(model).visual_positions(before["input_ids"]).sum()) if plan.shrinks else left
    config = model.config.get_text_config()
    ran = as_it_ran(plan.inside, [stage.after[0] for stage in report.stages])
    return Answer(
        text=text(ids),
        visual_tokens=visual,
        stages=tuple(
            StageCount(done.name, done.layer, planned.then, done.after[0])
            for done, planned in zip(report.stages, plan.stages, strict=False)  # none ran on a prompt without pictures
        ),
        average_visual_tokens=report.average_visual_tokens[0],
        skipped=tuple(layer for layer, rows in report.skipped if rows[0]),
        flops_ratio=prefill_flops(config, left, prompt_text, ran) / prefill_flops(config, visual, prompt_text),
        seconds=seconds,
        repeats=repeats,
        untouched=None if untouched is None else Timed(text(untouched), statistics.median(times["untouched"])),
        downsampled_to=left if plan.shrinks else None,
    )


def is_right(reply: str, answer: str) -> bool:
    """Exact match, ignoring case, outer blanks and a full stop."""
    return _bare(reply) == _bare(answer)


def _bare(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def _synchronise(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
