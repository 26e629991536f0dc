"""Timing `generate` from the inside, and several ways of running a model in turn.

Clocks are the engine's stopwatches: events on the GPU's own stream, which make nobody wait before the run is over.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from halfv_accel.adapters import Family, family_of
from halfv_accel.bench.prompts import Prompt, shrink_prompt
from halfv_accel.bench.results import UNTOUCHED, Comparison, Flops, Reading, variant
from halfv_accel.engine.report import Stopwatch
from halfv_accel.engine.run import Run, accelerate
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Plan, Stage
from halfv_accel.strategies import KeepNone, LastTokenAttention, RandomChoice, Strategy, needs_of

Result = TypeVar("Result")
ACCELERATED = "accelerated"
WITH_BLOCK = "with block"
MIB = 2**20


class Meter(StoppingCriteria):
    """Watches one call of `generate`: it never stops it, but is told of every token.

    What of the core is not the decoder is the vision encoder: its children are timed each.
    """

    def __init__(self, family: Family, stack: ExitStack) -> None:
        self.model, self.device = family.model, family.model.device
        self.whole: Stopwatch | None = None
        self.vision: list[Stopwatch] = []
        self.prefill: Stopwatch | None = None
        self.tokens: list[Stopwatch] = []  # one for each token, and one that the last token started
        self._prefilled = False
        parts = [part for part in family.core.children() if part is not family.text]
        for part in parts:
            stack.callback(part.register_forward_pre_hook(self._see).remove)
            stack.callback(part.register_forward_hook(self._seen).remove)
        # Ahead of HalfV's own hooks: what they do before the decoder is part of the prefill.
        stack.callback(family.core.register_forward_pre_hook(self._begin, prepend=True).remove)
        stack.callback(family.core.register_forward_hook(self._end).remove)

    def watch(self, prompt: Prompt, new_tokens: int) -> Any:
        """Call `generate`; returns the cache that it leaves."""
        self.start()
        self.whole = Stopwatch(self.device)
        output = self.model.generate(
            **prompt.inputs,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([self]),
        )
        self.whole.stop()
        return output.past_key_values

    def times(self, rows: int, new_tokens: int, before: float, after: float) -> dict[str, Any]:
        """What the clocks say, by a `Reading`'s fields; with what the caller spent before and after, in ms."""
        first, *others = (clock.milliseconds for clock in self.tokens[:-1])
        if self.prefill is None or self.whole is None or len(others) != new_tokens - 1:
            raise HalfVError(
                f"generate made {len(others) + 1} of {new_tokens} tokens: "
                "remove what ends it early from the model's generation_config"
            )
        return dict(
            vision_ms=sum(clock.milliseconds for clock in self.vision),
            prefill_ms=before + self.prefill.milliseconds + after,
            ttft_ms=before + first,
            decode_ms=statistics.median(others) if others else None,
            tokens_per_s=rows * new_tokens / (before + self.whole.milliseconds + after) * 1e3,
        )

    def start(self) -> None:
        self.tokens.append(Stopwatch(self.device))

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.tokens[-1].stop()
        self.start()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def _see(self, *_: Any) -> None:
        self.vision.append(Stopwatch(self.device))

    def _seen(self, *_: Any) -> None:
        self.vision[-1].stop()
        if self.prefill is not None and not self._prefilled:  # pixels came into the forward itself
            self.prefill = Stopwatch(self.device)

    def _begin(self, core: nn.Module, *_: Any) -> None:
        if self.prefill is None:
            self.prefill = Stopwatch(self.device)

    def _end(self, *_: Any) -> None:
        if self.prefill is not None and not self._prefilled:
            self.prefill.stop()
            self._prefilled = True


def measure(model: Any, prompt: Prompt, run: Run | Plan | None, new_tokens: int) -> Reading:
    """Generate exactly so many tokens, greedily, and read all clocks afterwards.

    Parameters
    ----------
    run : Run, Plan or None
        A run was made beforehand, and only its hooks' work is measured. A plan is what most people write, `with
        accelerate(model, plan)` around one `generate`, and all of that is measured.
    """
    family, cuda = family_of(model), model.device.type == "cuda"
    with ExitStack() as stack:
        if cuda:
            stack.enter_context(torch.cuda.device(model.device))  # whose stream the clocks are to stand in
            torch.cuda.synchronize(model.device)
            torch.cuda.reset_peak_memory_stats(model.device)
        entering = Stopwatch(model.device) if isinstance(run, Plan) else None
        made = accelerate(model, run) if isinstance(run, Plan) else run
        if made is not None:
            stack.enter_context(made)
        if entering is not None:
            entering.stop()
        meter = Meter(family, stack)
        cache = meter.watch(prompt, new_tokens)
        leaving = Stopwatch(model.device) if entering is not None else None
        if made is not None and leaving is not None:
            made.remove()
            leaving.stop()
        if cuda:
            torch.cuda.synchronize(model.device)
    before, after = (0.0 if clock is None else clock.milliseconds for clock in (entering, leaving))
    report = None if made is None else made.last
    return Reading(
        **meter.times(len(prompt.visual), new_tokens, before, after),
        peak_mib=torch.cuda.max_memory_allocated(model.device) / MIB if cuda else None,
        cache_bytes=cache_bytes(cache),
        selection_ms=0.0 if report is None else sum(stage.selection_ms for stage in report.stages),
        install_ms=before + after,
    )


def prepared(model: Any, plan: Plan | None) -> Run | None:
    """A run that can be installed again and again, or None for the untouched model."""
    return None if plan is None else accelerate(model, plan)


def cache_bytes(cache: Any) -> int:
    """Memory behind all tensors of a cache's layers; what two of them share counts once."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def variants(plan: Plan) -> dict[str, Plan | None]:
    """What is compared, by name.

    Beside the untouched model and the plan, accelerated beforehand: the plan in a `with accelerate(...)` around each
    call, as most people write it; with every stage keeping all, of pictures as they are (what the hooks cost); and with
    its first choice made by attention, as FastV does, or at random (what choosing costs).
    """
    compared: dict[str, Plan | None] = {UNTOUCHED: None, ACCELERATED: plan, WITH_BLOCK: plan}
    if plan.inside.keeps_everything:
        return compared  # there is nothing to choose
    all_kept = [_everything(stage) for stage in plan.stages]
    everything = tuple(all_kept or [Stage("all", plan.first, RandomChoice())])
    compared["keep all"] = replace(plan, stages=everything, skip=(), downsample=None)
    for name, strategy in (("FastV-style", LastTokenAttention()), ("random", RandomChoice())):
        other = _chosen_by(plan, strategy)
        if other is not None and other not in compared.values():
            compared[name] = other
    return compared


def _everything(stage: Stage) -> Stage:
    """The stage, keeping all."""
    strategy = RandomChoice() if isinstance(stage.strategy, KeepNone) else stage.strategy
    return Stage(stage.name, stage.layer, strategy, then=stage.then)


def _chosen_by(plan: Plan, strategy: Strategy) -> Plan | None:
    """The plan with its first choice made by another strategy; None where there is none, or that one cannot make it."""
    first = plan.stages[0] if plan.stages else None
    if first is None or isinstance(first.strategy, KeepNone) or first.layer < needs_of(strategy).before:
        return None
    return replace(plan, stages=(replace(first, strategy=strategy, least=None), *plan.stages[1:]))


def interleave(
    runs: Mapping[str, Callable[[], Result]],
    rounds: int,
    warm_up: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Result]]:
    """Run each once a round, in an order that is drawn anew each time; what the warm-up rounds return is forgotten.

    What ran before leaves its mark on caches and on the heap. In a fixed order, also one that is turned round, it would
    always be the same.

    Parameters
    ----------
    seed : int
        Of the orders.
    progress : callable
        Called with the rounds that are done, and with all of them.

    Returns
    -------
    dict
        By name, one result a round.
    """
    results: dict[str, list[Result]] = {name: [] for name in runs}
    draw = random.Random(seed)
    for turn in range(warm_up + rounds):
        for name in draw.sample(list(runs), len(runs)):
            result = runs[name]()
            if turn >= warm_up:
                results[name].append(result)
        progress(turn + 1, warm_up + rounds)
    return results


def warm_up_rounds(model: Any) -> int:
    """A GPU chooses its algorithms, and fills its memory pool, in the first runs."""
    return 3 if model.device.type == "cuda" else 1


def compare(
    model: Any,
    plan: Plan,
    prompt: Prompt,
    new_tokens: int = 32,
    rounds: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Time all variants of a plan on one batch, interleaved.

    Parameters
    ----------
    plan : Plan
        Where it shrinks pictures, its runs have prompts with smaller pictures of noise.
    new_tokens : int
        Generated for each row, whatever the model would like.
    rounds : int
        How often each variant runs, beside the warm-up.
    seed : int
        Of the orders and of the bootstrap.
    """
    compared = variants(plan)
    shrunk = shrink_prompt(model, prompt, plan.downsample, seed) if plan.downsample and plan.shrinks else prompt
    prompts = {name: shrunk if staged is not None and staged.shrinks else prompt for name, staged in compared.items()}
    inside = {name: None if staged is None else staged.inside for name, staged in compared.items()}
    flops = {
        name: Flops.of(model.config, prompts[name].visual, prompts[name].text, staged)
        for name, staged in inside.items()
    }
    made = {name: staged if name == WITH_BLOCK else prepared(model, staged) for name, staged in inside.items()}
    runs = {name: partial(measure, model, prompts[name], run, new_tokens) for name, run in made.items()}
    readings = interleave(runs, rounds, warm_up_rounds(model), seed, progress)
    found = [variant(name, staged, flops, readings, seed) for name, staged in compared.items()]
    downsampled = None if shrunk is prompt else shrunk.visual
    return Comparison(prompt.visual, prompt.text, new_tokens, rounds, found, downsampled)
