"""One accelerated prefill: runs the stages, and hands every later layer only the rows it has to process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from halfv_accel.adapters import Family
from halfv_accel.adapters.base import Rotary
from halfv_accel.budget import token_budget
from halfv_accel.engine.cache import KeysFirst, ReducedLayer, adopt
from halfv_accel.engine.masks import Kernel, prefill_mask
from halfv_accel.engine.report import PrefillReport, StageReport, Stopwatch
from halfv_accel.engine.rows import Rows
from halfv_accel.engine.view import LayerInput, LayerView
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Fidelity, Stage, Then
from halfv_accel.strategies import KeepNone


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
    packed : (B,) bool Tensor, optional
        Rows that hold several samples.

    Attributes
    ----------
    cache : Cache or None
        What the forward fills; known once a layer has been reduced.
    counts, text : list of int
        Visual tokens that layers process now, and tokens of text, of each row. Numbers live on the host, so that the
        device is waited for once before the forward, and once for each choice of tokens.
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
    ) -> None:
        self.family, self.fidelity, self.kernel, self.stages = family, fidelity, kernel, stages
        self.min_visual_tokens = min_visual_tokens
        past, real = mask.tensor_split([mask.shape[1] - visual.shape[1]], dim=1)
        self.visual = visual & real
        self.cache: Cache | None = None
        self.active = self.alive = real
        self.last = last_position(real)
        ends = ends_in_visual(visual, self.last)
        packed = torch.zeros_like(ends) if packed is None else packed & self.visual.any(1)
        facts = torch.stack([self.visual.sum(1), real.sum(1), past.sum(1), ends.long(), packed.long()]).tolist()
        self.counts, tokens, earlier, self.ends_in_visual, self.packed = facts
        self.text = [total - seen for total, seen in zip(tokens, self.counts, strict=True)]
        self.past_valid = None if min(earlier) == past.shape[1] else past
        self.valid = None if self.past_valid is None and min(tokens) == real.shape[1] else mask
        self.report = PrefillReport(visual_tokens=list(self.counts))
        self.layout: Layout | None = None
        self._home = real.device
        self._before: LayerInput | None = None
        self._full: Tensor | None = None

    @classmethod
    def of(
        cls,
        family: Family,
        fidelity: Fidelity,
        kernel: Kernel,
        arguments: Mapping[str, Any],
        stages: tuple[Stage, ...] = (),
        min_visual_tokens: int = 0,
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
        return cls(family, fidelity, kernel, visual, whole, stages, min_visual_tokens, packed)

    def enter(self, index: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before decoder layer `index`: run its stages, then reduce its arguments if anything was taken away."""
        hidden = args[0] if args else kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        here = LayerInput(hidden, (cos.to(hidden.device), sin.to(hidden.device)))
        for stage in self.stages:
            if stage.layer == index:
                self.run(stage, self._before, here)
        self._before = here if any(stage.layer == index + 1 for stage in self.stages) else None
        return self.reduce(index, here, args, kwargs)

    def reduce(
        self, index: int, here: LayerInput, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Arguments of a layer for the rows that it has to process; None while these are all."""
        if self.layout is None:
            return None
        self._move(here.states.device)
        self._full = here.states
        return self._reduce(self.layout, index, here, args, dict(kwargs))

    def leave(self, output: Tensor) -> Tensor | None:
        """After a layer: its result at full length."""
        if self._full is None or self.layout is None:
            return None
        full, self._full = self._full, None
        return self.layout.queries.scatter(full, output)

    def fork(self) -> Prefill:
        """A copy that can take another way from here on."""
        twin = copy.copy(self)
        twin.report = PrefillReport(self.report.visual_tokens, list(self.report.stages), list(self.report.kept))
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
        number = 0 if self.layout is None else self.layout.number + 1
        self.layout = Layout(Rows.packed_right(rows, active), frozen, number)

    def run(self, stage: Stage, before: LayerInput | None, here: LayerInput) -> None:
        """Take away what a stage takes away, given the inputs of the layer before it and of its own layer."""
        watch = Stopwatch(here.states.device)
        budget = self._budget(stage)
        self._move(here.states.device)
        candidates = self.active & self.visual
        if budget != self.counts:
            candidates = self._select(stage, before, here, candidates, budget)
            idle = [count - left for count, left in zip(self.counts, budget, strict=True)]
            active = [text + left for text, left in zip(self.text, budget, strict=True)]
            self.keep(self.active & (~self.visual | candidates), stage.then, (active, idle))
        self.report.stages.append(StageReport(stage.name, stage.layer, stage.then, self.counts, budget, watch.stop()))
        self.report.kept.append(candidates.to(self._home))
        self.counts = budget

    def _budget(self, stage: Stage) -> list[int]:
        """Visual tokens that a stage leaves of each row."""
        return [
            count if total < self.min_visual_tokens else min(token_budget(total, stage.retention), count)
            for total, count in zip(self.report.visual_tokens, self.counts, strict=True)
        ]

    def _select(
        self, stage: Stage, before: LayerInput | None, here: LayerInput, candidates: Tensor, budget: list[int]
    ) -> Tensor:
        """The strategy's choice among the candidates, in full-length positions: [B, S] bool."""
        if before is None:  # this layer's hooks ran without those of the layer before
            raise HalfVError(f"layer {stage.layer - 1} was skipped: call the whole model, not single layers")
        if isinstance(stage.strategy, KeepNone):  # nothing to choose
            return candidates & on_device([left > 0 for left in budget], candidates.device)[:, None]
        visual = Rows.packed_left(candidates, self.counts)
        view = LayerView(self.family, stage.layer, before, here, visual, self.last, self.fidelity)
        wanted = on_device(budget, candidates.device)
        with torch.no_grad():  # a choice has no gradient
            chosen = stage.strategy.select(view, wanted)
        fits = chosen.dtype == torch.bool and chosen.shape == visual.index.shape
        if fits and self.family.ranks is not None:
            chosen = self.family.ranks.first(chosen)  # no two of them may keep different tokens
        if not fits or bool((chosen & ~visual.present()).any() | (chosen.sum(1) != wanted).any()):
            raise HalfVError(
                f"strategy {stage.strategy!r} did not choose {budget} of {self.counts} visual tokens: "
                "return a bool mask [batch, visual] with exactly the budget in each row"
            )
        return torch.zeros_like(candidates).scatter(1, visual.index, chosen)

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
        if self.layout is not None and self.layout.queries.index.device != device:
            self.layout = self.layout.to(device)


def on_device(values: list[Any], device: torch.device) -> Tensor:
    """Numbers of the host as a tensor, without waiting for what the device has to do before."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


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
