"""Which visual tokens a stage should choose, one row and one head at a time, sharing no code with the engine.

Choices that rounding decides are left to the engine: among candidates within a margin of the best, the one that
it reports is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from halfv_accel.adapters.ranks import ranks_of
from halfv_accel.plan import Stage
from halfv_accel.strategies import AnchorCover

Seen = dict[int, tuple[Tensor, tuple[Tensor, Tensor]]]  # by layer: its states, and its cos and sin

SCORE_MARGIN = 1e-4  # of the best score, float32
DISTANCE_MARGIN = 2e-6  # squared distance between unit vectors; float32 resolves cosines to about 1e-7


@contextmanager
def watched(layers: Sequence[nn.Module], shape: torch.Size) -> Iterator[Seen]:
    """What goes into each layer when it first gets a whole prompt of that shape, before later hooks change it."""
    seen: Seen = {}

    def note(index: int, layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        if states.shape[:2] == shape:  # neither a probe of the engine's nor a decoding step
            seen.setdefault(index, (states, kwargs["position_embeddings"]))

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(partial(note, index), with_kwargs=True).remove)
        yield seen


@contextmanager
def received(layers: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """What each layer first gets after all hooks that are there by now: [B, n, H], n above 1."""
    packed: dict[int, Tensor] = {}

    def note(index: int, layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        if states.shape[1] > 1:
            packed.setdefault(index, states)

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(partial(note, index), with_kwargs=True).remove)
        yield packed


def choose(
    layers: Sequence[Any], seen: Seen, stage: Stage, row: int, visual: int, candidates: list[int], reported: set[int]
) -> set[int]:
    """Positions in one row that a stage should keep.

    Parameters
    ----------
    visual : int
        Visual tokens of the row before any stage, which shares refer to.
    candidates : list of int
        Positions still in play, ascending.
    reported : set of int
        What the engine kept; decides between equals.
    """
    budget = min(stage.tokens or max(1, int(visual * stage.retention + 1e-6)), len(candidates))
    covers = isinstance(stage.strategy, AnchorCover)
    scorer = stage.layer - (getattr(stage.strategy, "scored_by", "previous") == "previous")
    scores = last_token_scores(layers[scorer], seen[scorer], row, candidates, rotary=not covers)
    anchors = budget
    if isinstance(stage.strategy, AnchorCover):
        ratio = stage.strategy.anchor_ratio
        anchors = max(int(budget * ratio + 1e-6), int(ratio > 0))
    chosen: set[int] = set()
    while len(chosen) < anchors:
        rest = {position: score for position, score in scores.items() if position not in chosen}
        chosen.add(_best(rest, SCORE_MARGIN * max(rest.values()), reported))
    return farthest(seen[stage.layer][0][row], candidates, chosen or {candidates[0]}, budget, reported)


def last_token_scores(
    layer: Any, seen: tuple[Tensor, tuple[Tensor, Tensor]], row: int, candidates: list[int], rotary: bool
) -> dict[int, float]:
    """Mean over heads of softmax(q k / sqrt(d)) of the last token over the candidates, by position."""
    states, tables = seen
    attention, states = layer.self_attn, layer.input_layernorm(states[row : row + 1])[0]
    query = attention.q_proj(states[-1:]).view(-1, attention.head_dim)
    keys = attention.k_proj(states[candidates]).view(len(candidates), -1, attention.head_dim)
    if hasattr(attention, "q_norm"):
        query, keys = attention.q_norm(query), attention.k_norm(keys)
    if rotary:
        cos, sin = (table[row if len(table) > 1 else 0] for table in tables)
        query = _rotated(query, cos[-1], sin[-1])
        keys = _rotated(keys, cos[candidates][:, None], sin[candidates][:, None])
    shared = len(query) // keys.shape[1]
    weights = [
        (keys[:, head // shared].double() @ query[head].double() * attention.head_dim**-0.5).softmax(dim=0)
        for head in range(len(query))
    ]
    own, ranks = torch.stack(weights), ranks_of(layer)  # under tensor parallelism, other heads are elsewhere
    mean = own.mean(dim=0) if ranks is None else ranks.joined(own, dim=0).mean(dim=0)
    return dict(zip(candidates, mean.tolist(), strict=True))


def farthest(states: Tensor, candidates: list[int], chosen: set[int], budget: int, reported: set[int]) -> set[int]:
    """Eq. 5, word by word: add the candidate whose nearest chosen token is farthest away."""
    unit = {position: states[position].double() / states[position].double().norm() for position in candidates}
    directions = torch.stack([unit[position] for position in candidates])
    nearest = torch.full((len(candidates),), torch.inf, dtype=torch.float64, device=states.device)
    for position in chosen:
        nearest = nearest.minimum((directions - unit[position]).square().sum(dim=1))
    chosen = set(chosen)
    while len(chosen) < budget:
        distances = dict(zip(candidates, nearest.tolist(), strict=True))
        rest = {position: distance for position, distance in distances.items() if position not in chosen}
        pick = _best(rest, DISTANCE_MARGIN, reported)
        chosen.add(pick)
        nearest = nearest.minimum((directions - unit[pick]).square().sum(dim=1))
    return chosen


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-right, left], dim=-1) * sin


def _best(values: Mapping[int, float], margin: float, reported: set[int]) -> int:
    """The position with the highest value; a reported one where the difference is within the margin."""
    top = max(values.values())
    equals = [position for position, value in values.items() if value >= top - margin]
    return max(equals, key=lambda position: (position in reported, values[position], -position))
