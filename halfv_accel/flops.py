"""Floating point operations of a decoder's prefill: counted exactly, and by the paper's formula (Appendix I.6).

A product of an m x k and a k x n matrix counts 2 m k n. Norms, rotary embedding, softmax, activations, the embedding
and the vision tower are left out; `lm_head` and the choice of tokens are counted apart. Attention is counted as the
full rectangle queries x keys, which is what `eager` and masked kernels compute and what Eq. 43 counts; `causal=True`
counts only pairs that causality allows, with all visual tokens in front of the text.

>>> llava = Decoder(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128)
>>> round(paper_flops(llava, visual=576, text=50) / 1e12, 2)      # Table 3, LLaVA-1.5-7B, vanilla
8.31
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from halfv_accel.decoder import Decoder, Tower
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Plan
from halfv_accel.strategies import Counted, CountedAdaptive, Sizes, Strategy, hides_separators

__all__ = ["Decoder", "as_it_ran", "head_flops", "paper_flops", "prefill_flops", "selection_flops"]


def prefill_flops(config: Any, visual: int, text: int, plan: Plan | None = None, *, causal: bool = False) -> int:
    """Exact operations of one sequence's prefill, without the cost of selection (see `selection_flops`).

    Parameters
    ----------
    config : transformers config or Decoder
    visual, text : int
        Tokens of the sequence.
    plan : Plan, optional
        Where it shrinks pictures, the most tokens that are left of them are counted, and the stages count from there.
        Dropped tokens are gone; frozen ones, and those of a skipped layer, cost their key and value projections and
        are attended to. Where a strategy decides itself how many stay, the most are counted; see `as_it_ran`.
    """
    decoder = Decoder.of(config)
    return sum(
        _layer_flops(decoder, text + active, frozen, text, causal)
        for active, frozen in tokens_per_layer(decoder.layers, visual, plan)
    )


def as_it_ran(plan: Plan, kept: Sequence[int]) -> Plan:
    """The plan with the numbers of tokens that its stages left of a row, for counting what really was done.

    Parameters
    ----------
    kept : sequence of int
        Of each stage that ran, as reports have them: strategies that decide themselves may have kept fewer than the
        most that `prefill_flops` counts beforehand.
    """
    stages = (
        replace(stage, tokens=left, retention=1.0, least=None) if left and stage.least is not None else stage
        for stage, left in zip(plan.stages, kept, strict=False)
    )
    return replace(plan, stages=tuple(stages)) if kept else plan


def paper_flops(config: Any, visual: int, text: int, plan: Plan | None = None) -> int:
    """The paper's count (Eq. 43-44): four h x h projections whatever the key/value heads, frozen tokens for nothing.

    With n processed and m attended tokens a layer costs 2 n (4h + 3m_ffn) h + 4 n m h.
    """
    decoder = Decoder.of(config)
    total = 0
    for active, frozen in tokens_per_layer(decoder.layers, visual, plan):
        n = text + active
        total += 2 * n * (4 * decoder.hidden + 3 * decoder.intermediate) * decoder.hidden
        total += 4 * n * (n + frozen) * decoder.hidden
    return total


def selection_flops(
    config: Any, visual: int, plan: Plan, text: int = 0, separators: int = 0, kept: Sequence[int] | None = None
) -> int:
    """Operations that choosing tokens adds to `prefill_flops`, as each stage's strategy counts them.

    Where a strategy decides itself how many tokens stay, that decision is counted, and the costliest choice that it may
    come to.

    Parameters
    ----------
    config : transformers config or Decoder
        From a `Decoder` alone, what strategies do with the vision tower is not counted.
    visual, text : int
        Tokens of the sequence.
    separators : int
        How many of the visual tokens are separators, which most strategies before the language model are not shown.
    kept : sequence of int, optional
        Visual tokens that each stage did leave, as reports have them: what a run cost, and not what its plan may cost
        at most.

    Raises
    ------
    HalfVError
        If a strategy that has to choose does not count its operations.
    """
    decoder = Decoder.of(config)
    visual = _shrunk(visual, plan)
    total, alive = 0, visual
    for number, stage in () if plan.spares(visual) else enumerate(plan.stages):
        least, most = min(stage.fewest(visual), alive), min(stage.most(visual), alive)
        left = most if kept is None else kept[number]
        if least < alive:  # otherwise the engine does not ask
            hidden = separators if hides_separators(stage.strategy) else 0
            shown = max(0, alive - hidden)  # separators go first
            counts = range(least, most + 1) if kept is None else (left,)
            choices = {min(count, shown) for count in counts if count < alive}  # nothing to choose where all stay
            sizes = Sizes(decoder, shown, min(most, shown), text, Tower.of(config))
            if least != most and least < shown:
                total += _count_flops(stage.strategy, sizes)
            total += max((_choice_flops(stage.strategy, replace(sizes, kept=some)) for some in choices), default=0)
            separators = max(0, left - shown) if hidden else separators
        alive = left
    return total


def head_flops(config: Any, tokens: int = 1) -> int:
    """Operations of `lm_head`; a prefill in `generate` asks for the logits of one token.

    Parameters
    ----------
    config : transformers config
    """
    text = config.get_text_config()
    return 2 * tokens * text.hidden_size * text.vocab_size


def _choice_flops(strategy: Strategy, sizes: Sizes) -> int:
    if not isinstance(strategy, Counted):
        raise HalfVError(f"strategy {strategy!r} does not count its operations: give it flops(sizes)")
    return strategy.flops(sizes)


def _count_flops(strategy: Strategy, sizes: Sizes) -> int:
    if not isinstance(strategy, CountedAdaptive):
        raise HalfVError(f"strategy {strategy!r} does not count what its count costs: give it count_flops(sizes)")
    return strategy.count_flops(sizes)


def tokens_per_layer(layers: int, visual: int, plan: Plan | None) -> Iterator[tuple[int, int]]:
    """(processed, frozen) visual tokens of each layer."""
    visual = _shrunk(visual, plan)
    active, frozen = visual, 0
    if plan is None or plan.spares(visual):
        plan = None
    for layer in range(layers):
        for stage in () if plan is None else plan.stages:
            if stage.layer == layer:
                kept = min(stage.most(visual), active)
                frozen += active - kept if stage.then == "freeze" else 0
                active = kept
        if plan is not None and layer in plan.skip:
            yield 0, frozen + active
        else:
            yield active, frozen


def _shrunk(visual: int, plan: Plan | None) -> int:
    """Visual tokens that come into the decoder."""
    return visual if plan is None or plan.downsample is None else plan.downsample.most(visual)


def _layer_flops(decoder: Decoder, processed: int, frozen: int, text: int, causal: bool) -> int:
    """One layer that processes some tokens and only attends to others."""
    query, key = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    projections = 2 * processed * decoder.hidden * 2 * query + 2 * (processed + frozen) * decoder.hidden * 2 * key
    ffn = 3 * 2 * processed * decoder.hidden * decoder.intermediate
    pairs = processed * (processed + frozen)
    if causal:
        pairs = processed * (processed + 1) // 2 + text * frozen
    return projections + ffn + 2 * 2 * query * pairs
