"""One accelerated prefill: runs the stages, and hands every later layer only the rows it has to process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from halfv_accel.adapters import Family
from halfv_accel.adapters.base import Rotary
from halfv_accel.budget import token_budget
from halfv_accel.engine.cache import KeysFirst, adopt
from halfv_accel.engine.masks import prefill_mask
from halfv_accel.engine.report import PrefillReport, StageReport, Stopwatch
from halfv_accel.engine.rows import Rows
from halfv_accel.engine.view import LayerInput, LayerView
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Plan, Stage


class Prefill:
    """State of one forward, from the first layer's input to the last layer's output.

    Two masks say everything: `active` are the tokens that layers process, `alive` those that can be attended to. A
    stage that drops shrinks both, a stage that freezes shrinks only `active`. While no stage has taken anything away,
    layers get their arguments untouched, and the result is the untouched model's to the last bit.

    Parameters
    ----------
    visual : (B, S) bool Tensor
        Visual tokens.
    real : (B, S) bool Tensor
        All tokens but padding.
    """

    def __init__(self, family: Family, plan: Plan, visual: Tensor, real: Tensor) -> None:
        self.family, self.plan = family, plan
        self.visual = visual & real
        self.active = self.alive = real
        self.last = last_position(real)
        self.counts: list[int] = self.visual.sum(1).tolist()
        self.report = PrefillReport(visual_tokens=list(self.counts))
        self.queries: Rows | None = None
        self.frozen: Rows | None = None
        self._before: LayerInput | None = None
        self._full: Tensor | None = None
        self._shared: tuple[Tensor | None, Rotary] | None = None  # mask and position embeddings of the current rows

    def enter(self, index: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before decoder layer `index`: run its stages, then reduce its arguments if anything was taken away."""
        hidden = args[0] if args else kwargs["hidden_states"]
        here = LayerInput(hidden, kwargs["position_embeddings"])
        for stage in self.plan.stages:
            if stage.layer == index:
                self._run(stage, here)
        self._before = here if any(stage.layer == index + 1 for stage in self.plan.stages) else None
        if self.queries is None:
            return None
        self._full = hidden
        return self._reduce(index, here, args, dict(kwargs))

    def leave(self, output: Tensor) -> Tensor | None:
        """After a layer: its result at full length."""
        if self._full is None or self.queries is None:
            return None
        full, self._full = self._full, None
        return self.queries.scatter(full, output)

    def _run(self, stage: Stage, here: LayerInput) -> None:
        watch = Stopwatch(here.states.device)
        totals = self.report.visual_tokens
        budget = [min(token_budget(n, stage.retention), count) for n, count in zip(totals, self.counts, strict=True)]
        candidates = self.active & self.visual
        if budget != self.counts:
            candidates = self._select(stage, here, candidates, budget)
            self.active = self.active & (~self.visual | candidates)
            if stage.then == "drop":
                self.alive = self.active
            self.queries = Rows.packed_right(self.active)
            self.frozen = Rows.packed_right(self.alive & ~self.active) if stage.then == "freeze" else None
            self._shared = None
        self.report.stages.append(StageReport(stage.name, stage.layer, stage.then, self.counts, budget, watch.stop()))
        self.report.kept.append(candidates)
        self.counts = budget

    def _select(self, stage: Stage, here: LayerInput, candidates: Tensor, budget: list[int]) -> Tensor:
        """The strategy's choice among the candidates, in full-length positions: [B, S] bool."""
        if self._before is None:  # this layer's hooks ran without those of the layer before
            raise HalfVError(f"layer {stage.layer - 1} was skipped: call the whole model, not single layers")
        visual = Rows.packed_left(candidates)
        scorer = self.family.layers[stage.layer - 1]
        view = LayerView(self.family, scorer, self._before, here, visual, self.last, self.plan.fidelity)
        wanted = torch.tensor(budget, device=candidates.device)
        chosen = stage.strategy.select(view, wanted)
        fits = chosen.dtype == torch.bool and chosen.shape == visual.index.shape
        if not fits or bool((chosen & ~visual.present()).any() | (chosen.sum(1) != wanted).any()):
            raise HalfVError(
                f"strategy {stage.strategy!r} did not choose {budget} of {self.counts} visual tokens: "
                "return a bool mask [batch, visual] with exactly the budget in each row"
            )
        return torch.zeros_like(candidates).scatter(1, visual.index, chosen)

    def _reduce(self, index: int, here: LayerInput, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        """Arguments of a layer that processes fewer rows, and the place in the cache for what it will keep."""
        queries, frozen = self._rows()
        states, rotary = here.at(queries) if self._shared is None else (queries.gather(here.states), self._shared[1])
        if self._shared is None:
            implementation = self.family.text.config._attn_implementation
            mask = prefill_mask(kwargs.get("attention_mask"), queries, frozen, implementation, states.dtype)
            self._shared = mask, rotary
        # RoPE comes from position_embeddings; position ids with gaps look like packed sequences to flash attention.
        kwargs.update(attention_mask=self._shared[0], position_embeddings=rotary, position_ids=None)
        cache = kwargs.get("past_key_values")
        if cache is not None:
            places = queries if frozen is None else frozen.join(queries)
            adopt(cache, index).expect_prefill(places.index.shape[1], places.valid)
        if frozen is not None:
            layer = self.family.layers[index]
            idle, idle_rotary = here.at(frozen)
            keys, values = self.family.keys(layer, idle, idle_rotary), self.family.values(layer, idle)
            kwargs["past_key_values"] = KeysFirst(cache, keys, values)
        if args:
            return (states, *args[1:]), kwargs
        return (), {**kwargs, "hidden_states": states}

    def _rows(self) -> tuple[Rows, Rows | None]:
        if self.queries is None:
            raise HalfVError("no stage has run: call the whole model, not single layers")
        return self.queries, self.frozen


def last_position(real: Tensor) -> Tensor:
    """Position of each row's last token that is not padding: [B]."""
    positions = torch.arange(real.shape[1], device=real.device)
    return positions.masked_fill(~real, 0).amax(dim=1)
