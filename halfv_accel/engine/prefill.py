"""One accelerated prefill: runs the stages, and hands every later layer only the rows it has to process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from halfv_accel.adapters import Family
from halfv_accel.adapters.base import Rotary
from halfv_accel.engine.cache import KeysFirst, ReducedLayer, adopt
from halfv_accel.engine.choice import Choice, on_device
from halfv_accel.engine.masks import Kernel, prefill_mask
from halfv_accel.engine.report import PrefillReport, StageReport, Stopwatch
from halfv_accel.engine.rows import Rows
from halfv_accel.engine.scene import Scene
from halfv_accel.engine.view import LayerInput, LayerView
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Fidelity, Stage, Then
from halfv_accel.strategies import KeepNone, hides_separators, needs_of


@dataclass
class Layout:
    """What layers get once a stage has taken something away.

    Parameters
    ----------
    queries : Rows
        Tokens that layers process.
    frozen : Rows or None
        Tokens that only provide keys and values.
    number : int
        How many layouts came before it in this forward.
    """

    queries: Rows
    frozen: Rows | None
    number: int
    shared: Shared | None = None  # built by the first layer of the layout, used by the others too

    @cached_property
    def rows(self) -> Rows:
        """All tokens that leave keys and values, in the cache's order."""
        return self.queries if self.frozen is None else self.frozen.join(self.queries)

    def to(self, device: torch.device) -> Layout:
        frozen = None if self.frozen is None else self.frozen.to(device)
        return Layout(self.queries.to(device), frozen, self.number)


@dataclass(frozen=True)
class Shared:
    """What all layers of a layout are given alike."""

    mask: Tensor | None
    rotary: Rotary
    frozen_rotary: Rotary | None


class Prefill:
    """State of one forward, from the first layer's input to the last layer's output.

    Two masks say everything: `active` are the tokens that layers process, `alive` those that can be attended to. A
    stage that drops shrinks both, a stage that freezes shrinks only `active`. While no stage has taken anything away,
    layers get their arguments untouched, and the result is the untouched model's to the last bit.

    Parameters
    ----------
    fidelity : {"paper", "reference"}
        Of the plan.
    kernel : {"sdpa", "eager", "flash"}
        What kind of mask the model's attention takes.
    visual : (B, S) bool Tensor
        Visual tokens of this forward.
    mask : (B, P + S) bool Tensor
        All tokens but padding, those that the cache holds already first.
    stages : tuple of Stage
        Those that `enter` runs by itself.
    min_visual_tokens : int
        Rows with fewer keep all that they have.
    skip : collection of int
        Layers that do not update visual tokens.
    scene : Scene, optional
        What strategies may ask of the pictures.
    packed : (B,) bool Tensor, optional
        Rows that hold several samples.

    Attributes
    ----------
    cache : Cache or None
        What the forward fills; known once a layer has been reduced.
    counts, text : list of int
        Visual tokens that layers process now, and tokens of text, of each row. Numbers live on the host, so that the
        device is waited for once before the forward, and once for each choice of tokens.
    words, spoken : (B, S) bool Tensor, list of int
        Tokens of text that strategies see, and how many these are.
    prompt : (B, S, H) Tensor or None
        Input of layer 0, where a strategy needs it.
    ends_in_visual : list of bool
        Is a row's last token a visual one?
    packed : list of bool
        Does a row with visual tokens hold several samples?
    """

    def __init__(
        self,
        family: Family,
        fidelity: Fidelity,
        kernel: Kernel,
        visual: Tensor,
        mask: Tensor,
        stages: tuple[Stage, ...] = (),
        min_visual_tokens: int = 0,
        packed: Tensor | None = None,
        skip: Collection[int] = (),
        scene: Scene | None = None,
    ) -> None:
        self.family, self.fidelity, self.kernel, self.stages = family, fidelity, kernel, stages
        self.min_visual_tokens, self.skip, self.scene = min_visual_tokens, frozenset(skip), scene
        past, real = mask.tensor_split([mask.shape[1] - visual.shape[1]], dim=1)
        self.visual, self.words = visual & real, real & ~visual
        self.cache: Cache | None = None
        self.active = self.alive = real
        self.last = last_position(real)
        ends = ends_in_visual(visual, self.last)
        packed = torch.zeros_like(ends) if packed is None else packed & self.visual.any(1)
        facts = torch.stack([self.visual.sum(1), real.sum(1), past.sum(1), ends.long(), packed.long()]).tolist()
        self.counts, tokens, earlier, self.ends_in_visual, self.packed = facts
        self.text = [total - seen for total, seen in zip(tokens, self.counts, strict=True)]
        self.spoken = self.text
        self.past_valid = None if min(earlier) == past.shape[1] else past
        self.valid = None if self.past_valid is None and min(tokens) == real.shape[1] else mask
        self.report = PrefillReport(list(self.counts), len(family.layers))
        self.layout: Layout | None = None
        self._layouts = 0  # how many there have been
        self._skipping: Layout | None = None  # that of skipped layers, beside the present one
        self._home = real.device
        self.prompt: Tensor | None = None  # input of layer 0, where a strategy asks for it
        self._before: LayerInput | None = None
        self._reduced: tuple[Layout, Tensor] | None = None  # that of the layer under way, and its full-length input

    @classmethod
    def of(
        cls,
        family: Family,
        fidelity: Fidelity,
        kernel: Kernel,
        arguments: Mapping[str, Any],
        stages: tuple[Stage, ...] = (),
        min_visual_tokens: int = 0,
        skip: Collection[int] = (),
        scene: Scene | None = None,
    ) -> Prefill:
        """From the arguments of the core's forward."""
        ids: Tensor = arguments["input_ids"]
        mask = arguments.get("attention_mask")
        whole = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
        visual = family.visual_positions(ids, family.modalities(arguments))
        cached = arguments.get("use_cache")
        cached = getattr(family.text.config, "use_cache", True) if cached is None else cached
        splits = arguments.get("attention_mask") is None and arguments.get("past_key_values") is None and not cached
        packed = packed_rows(visual, whole[:, -ids.shape[1] :], arguments.get("position_ids"), mask, splits)
        return cls(family, fidelity, kernel, visual, whole, stages, min_visual_tokens, packed, skip, scene)

    def enter(self, index: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before decoder layer `index`: run its stages, then reduce its arguments if anything was taken away."""
        hidden = args[0] if args else kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        here = LayerInput(hidden, (cos.to(hidden.device), sin.to(hidden.device)))
        if index == 0 and any(needs_of(stage.strategy).prompt for stage in self.stages):
            self.prompt = hidden
        for stage in self.stages:
            if stage.layer == index:
                here = self.run(stage, self._before, here)
        self._before = here if any(stage.layer == index + 1 for stage in self.stages) else None
        return self.reduce(index, here, args, kwargs)

    def reduce(
        self, index: int, here: LayerInput, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Arguments of a layer for the rows that it has to process; None while these are all."""
        self._move(here.states.device)
        layout = self._layout_of(index)
        if layout is None:
            return None
        self._reduced = layout, here.states
        return self._reduce(layout, index, here, args, dict(kwargs))

    def leave(self, output: Tensor) -> Tensor | None:
        """After a layer: its result at full length."""
        if self._reduced is None:
            return None
        (layout, full), self._reduced = self._reduced, None
        return layout.queries.scatter(full, output)

    def end_prompts_at(self, last: Tensor) -> None:
        """Say that what stands behind these positions (B,) is no part of the prompts: strategies do not see it."""
        places = torch.arange(self.words.shape[1], device=self.words.device)
        self.last, self.words = last, self.words & (places <= last.to(places.device)[:, None])
        self.spoken = self.words.sum(1).tolist()

    def fork(self) -> Prefill:
        """A copy that can take another way from here on."""
        twin = copy.copy(self)
        report = self.report
        twin.report = replace(report, stages=list(report.stages), kept=list(report.kept), skipped=list(report.skipped))
        return twin

    def keep(self, rows: Tensor, then: Then, counts: tuple[list[int], list[int]] | None = None) -> None:
        """Let later layers process only these rows of the active ones; the others are gone or frozen.

        Parameters
        ----------
        rows : (B, S) bool Tensor
        then : {"drop", "freeze"}
        counts : two lists of int, optional
            How many each row processes from here on, and how many it freezes; without them, the device is asked.
        """
        self._move(rows.device)
        self.active = rows
        if then == "drop":
            self.alive = rows
        active, idle = counts or (None, None)
        frozen = Rows.packed_right(self.alive & ~rows, idle) if then == "freeze" else None
        self.layout, self._skipping = self._new_layout(Rows.packed_right(rows, active), frozen), None

    def run(self, stage: Stage, before: LayerInput | None, here: LayerInput) -> LayerInput:
        """Take away what a stage takes away, given the inputs of the layer before it and of its own layer.

        Returns
        -------
        LayerInput
            What its own layer is to get: what was given, but for tokens that others were merged into.
        """
        watch = Stopwatch(here.states.device)
        self._move(here.states.device)
        candidates = self.active & self.visual
        least, budget = self._bounds(stage, stage.fewest), self._bounds(stage, stage.most)
        nothing = least == self.counts or isinstance(stage.strategy, KeepNone)  # to choose
        choice = None if nothing else self._choice(stage, before, here, candidates)
        if choice is not None and least != budget:
            budget = choice.count(least, budget)
        if budget != self.counts:
            if choice is None:
                candidates = candidates & on_device([left > 0 for left in budget], candidates.device)[:, None]
            else:
                candidates = choice.select(budget)
                here = choice.merged(here)
            idle = [count - left for count, left in zip(self.counts, budget, strict=True)]
            active = [text + left for text, left in zip(self.text, budget, strict=True)]
            self.keep(self.active & (~self.visual | candidates), stage.then, (active, idle))
        self.report.stages.append(StageReport(stage.name, stage.layer, stage.then, self.counts, budget, watch.stop()))
        self.report.kept.append(candidates.to(self._home))
        self.counts = budget
        return here

    def _bounds(self, stage: Stage, bound: Callable[[int], int]) -> list[int]:
        """Visual tokens that a stage leaves of each row at most, or at least."""
        return [
            count if total < self.min_visual_tokens else min(bound(total), count) for total, count in self._tokens()
        ]

    def _new_layout(self, queries: Rows, frozen: Rows | None) -> Layout:
        self._layouts += 1
        return Layout(queries, frozen, self._layouts)

    def _layout_of(self, index: int) -> Layout | None:
        """What a layer gets; None while it gets all."""
        if index not in self.skip:
            return self.layout
        skips = [total >= self.min_visual_tokens and count > 0 for total, count in self._tokens()]
        self.report.skipped.append((index, skips))
        if self._skipping is None and any(skips):
            visual = self.visual & on_device(skips, self.visual.device)[:, None]
            text = self.active & ~visual
            thawed = self.layout is None or self.layout.frozen is None  # else only the device knows
            idle = [count if skip else 0 for count, skip in zip(self.counts, skips, strict=True)]
            busy = [words + now - less for words, now, less in zip(self.text, self.counts, idle, strict=True)]
            frozen = Rows.packed_right(self.alive & ~text, idle if thawed else None)
            self._skipping = self._new_layout(Rows.packed_right(text, busy), frozen)
        return self._skipping or self.layout

    def _tokens(self) -> Iterator[tuple[int, int]]:
        """Visual tokens of each row, before any stage and now."""
        return zip(self.report.visual_tokens, self.counts, strict=True)

    def _choice(self, stage: Stage, before: LayerInput | None, here: LayerInput, candidates: Tensor) -> Choice:
        """What a stage's strategy is asked with."""
        if before is None and needs_of(stage.strategy).before:  # this layer's hooks ran without those before
            raise HalfVError(f"layer {stage.layer - 1} was skipped: call the whole model, not single layers")
        counts, hidden = self.counts, None
        if self.scene is not None and hides_separators(stage.strategy):
            separators = candidates & self.scene.separator.to(candidates.device)
            shown = (candidates & ~separators).sum(1).tolist()
            if shown != counts:
                candidates, counts, hidden = candidates & ~separators, shown, separators
        visual, words = Rows.packed_left(candidates, counts), (self.words, self.spoken)
        view = LayerView(
            self.family, stage.layer, before, here, visual, words, self.last, self.fidelity, self.prompt, self.scene
        )
        return Choice(stage, view, candidates, counts, hidden)

    def _reduce(
        self, layout: Layout, index: int, here: LayerInput, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """Arguments of a layer that processes fewer rows, and the place in the cache for what it will keep."""
        cached = self._cached(index, kwargs.get("past_key_values"))
        if layout.shared is None or (cached is not None and cached.places):  # turns leave other lengths in each layer
            layout.shared = Shared(
                self._mask(layout, kwargs.get("attention_mask"), cached, here),
                here.rotary_at(layout.queries),
                None if layout.frozen is None else here.rotary_at(layout.frozen),
            )
        shared = layout.shared
        states = layout.queries.gather(here.states)
        # RoPE comes from position_embeddings; position ids with gaps look like packed sequences to flash attention.
        kwargs.update(attention_mask=shared.mask, position_embeddings=shared.rotary, position_ids=None)
        if cached is not None:
            past_valid = cached.past_valid(self.past_valid)
            cached.expect(layout.rows, layout.number, here.states.shape[1], past_valid)
        if layout.frozen is not None:
            layer = self.family.layers[index]
            idle = layout.frozen.gather(here.states)  # anew: DeepStack adds to frozen tokens, too
            keys, values = self.family.keys_and_values(layer, idle, shared.frozen_rotary)
            kwargs["past_key_values"] = KeysFirst(self.cache, keys, values)
        if args:
            return (states, *args[1:]), kwargs
        return (), {**kwargs, "hidden_states": states}

    def _cached(self, index: int, cache: Cache | None) -> ReducedLayer | None:
        """The layer's part of the cache, ready for a reduced update."""
        if cache is None:
            return None
        if self.cache is None:
            adopt(cache, len(self.family.layers), index, self.valid)
            self.cache = cache
        return cast(ReducedLayer, self.cache.layers[index])

    def _mask(
        self, layout: Layout, base: Tensor | None, cached: ReducedLayer | None, here: LayerInput
    ) -> Tensor | None:
        past, valid = (0, None) if cached is None else (cached.places, cached.past_valid(self.past_valid))
        return prefill_mask(base, layout.queries, layout.frozen, past, valid, self.kernel, here.states.dtype)

    def _move(self, device: torch.device) -> None:
        """Follow the residual stream of a model that is spread over devices."""
        if self.active.device != device:
            self.active, self.alive = self.active.to(device), self.alive.to(device)
            self.visual, self.last = self.visual.to(device), self.last.to(device)
            self.words = self.words.to(device)
        if self.layout is not None and self.layout.queries.index.device != device:
            self.layout = self.layout.to(device)
        if self._skipping is not None and self._skipping.queries.index.device != device:
            self._skipping = self._skipping.to(device)


def ends_in_visual(visual: Tensor, last: Tensor) -> Tensor:
    """Is the token at a row's last position a visual one? [B] bool."""
    return visual.gather(1, last[:, None])[:, 0]


def packed_rows(visual: Tensor, real: Tensor, positions: Tensor | None, mask: Tensor | None, splits: bool) -> Tensor:
    """Which rows hold several samples: [B] bool.

    Their positions restart: a token is placed before one that it follows. Positions in a grid fall in every picture,
    and the time of a video runs ahead of the text behind it; but none of the three is ever below that of earlier text.
    Some trainers number a row's samples in its mask.

    Parameters
    ----------
    visual, real : (B, S) bool Tensor
        Visual tokens; all new tokens but padding, whose positions mean nothing.
    positions : (B or 1, S) or (3 or 4, B or 1, S) Tensor or None
        As the model is given them: of tokens, of time, height and width, or of both, those of tokens first.
    mask : (B, P + S) Tensor or None
    splits : bool
        There is neither mask nor cache. Then transformers takes any step but 1 for the start of another sample.
    """
    packed = torch.zeros_like(real[:, 0])
    if mask is not None and not mask.is_floating_point():
        packed = (mask.to(real.device).long() > 1).any(1)
    if positions is None:
        return packed
    grid = positions.ndim == 3 and len(positions) == 3
    places = positions if positions.ndim == 2 else positions.amin(0) if grid else positions[0]
    places = places.to(real.device).long().expand(len(real), -1)
    anchors = real & ~visual if grid else real
    tops = places.masked_fill(~anchors, torch.iinfo(torch.long).min).cummax(1).values
    packed = packed | ((places < tops) & real).any(1)
    return packed | (places.diff(dim=1) != 1).any(1) if splits and not grid else packed


def last_position(real: Tensor) -> Tensor:
    """Position of each row's last token that is not padding: [B]."""
    positions = torch.arange(real.shape[1], device=real.device)
    return positions.masked_fill(~real, 0).amax(dim=1)
