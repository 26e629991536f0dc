"""What a strategy gets to see: the visual tokens in front of a layer, and what attends to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from halfv_accel.adapters import Family
from halfv_accel.adapters.base import Rotary, products
from halfv_accel.engine.rows import Rows
from halfv_accel.engine.scene import Scene
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Fidelity
from halfv_accel.strategies import Places, ScoredBy, Signal

CHUNK = 2**24  # entries of an attention map that is held at a time


@dataclass(frozen=True)
class LayerInput:
    """Full-length input of a decoder layer: its states [B, S, H] and position embeddings [B or 1, S, head_dim]."""

    states: Tensor
    rotary: Rotary

    def at(self, rows: Rows) -> tuple[Tensor, Rotary]:
        """States and position embeddings of some rows."""
        return rows.gather(self.states), self.rotary_at(rows)

    def rotary_at(self, rows: Rows) -> Rotary:
        cos, sin = self.rotary
        return rows.gather(cos), rows.gather(sin)


@dataclass(frozen=True)
class LayerView:
    """The visual tokens still in play before the layer of a stage.

    Under tensor parallelism a process holds some of the heads. A signal that is made from queries, keys or values
    passes through `family.all_heads` while it still has its head dimension, and is then the same in all processes.

    Parameters
    ----------
    family : Family
    layer : int
        L, the layer in front of which the stage acts.
    before : LayerInput or None
        Input of layer L-1; there is none before layer 0.
    here : LayerInput
        Input of layer L.
    visual : Rows
        Visual tokens, packed to the left.
    text : (B, S) bool Tensor, list of int
        Tokens of text, and how many each row has.
    last : (B,) long Tensor
        Position of each row's last text token.
    prompt : (B, S, H) Tensor or None
        Input of layer 0, where a strategy needs it.
    scene : Scene or None
        What is known of the pictures, where a strategy needs it.
    """

    family: Family
    layer: int
    before: LayerInput | None
    here: LayerInput
    visual: Rows
    text: tuple[Tensor, list[int]]
    last: Tensor
    fidelity: Fidelity
    prompt: Tensor | None = None
    scene: Scene | None = None

    @property
    def present(self) -> Tensor:
        return self.visual.present()

    @cached_property
    def words(self) -> Rows:
        """Tokens of text, packed to the left; most strategies do not ask."""
        return Rows.packed_left(*self.text)

    @property
    def states(self) -> Tensor:
        """Hidden states [B, V, H]; "reference" passes them through the final norm first, as the public code does."""
        states = self.visual.gather(self.here.states)
        return self.family.normed(states).to(states.device) if self.fidelity == "reference" else states

    @property
    def text_present(self) -> Tensor:
        return self.words.present()

    @property
    def text_states(self) -> Tensor:
        return self.words.gather(self.here.states)

    @property
    def prompt_states(self) -> tuple[Tensor, Tensor]:
        if self.prompt is None:
            raise HalfVError("the prompt's embeddings were not asked for: give the strategy needs = Needs(prompt=True)")
        prompt = self.prompt.to(self.here.states.device)
        return self.visual.gather(prompt), self.words.gather(prompt)

    @property
    def places(self) -> Places:
        return self._scene().places(self.visual)

    def vision(self, signal: Signal, layer: int = -2) -> Tensor:
        return self._scene().signal(signal, layer, self.visual)

    def last_token_scores(self, rotary: bool, scored_by: ScoredBy = "previous") -> Tensor:
        """softmax(q k / sqrt(d)) over the visual keys, mean over heads: [B, V] float32, 0 on padding.

        By layer L-1's own norm and projections on what that layer received, as the public code does ("previous"), or
        by layer L's on what the stage receives, as the paper's alpha^(L) can be read ("own"). "reference" leaves out
        1/sqrt(d), as the public code does.
        """
        scorer, seen = self._scorer(scored_by)
        query_states, query_rotary = seen.at(Rows(self.last[:, None], None, seen.states.shape[1]))
        key_states, key_rotary = seen.at(self.visual)
        query = self.family.queries(scorer, query_states, query_rotary if rotary else None)  # [B, heads, 1, d]
        if rotary:
            logits = products(query, self.family.keys(scorer, key_states, key_rotary))
        else:
            logits = self.family.unrotated_products(scorer, query, key_states)
        logits = logits.to(self.present.device)  # [B, heads, V]
        if self.fidelity == "paper":
            logits = logits * query.shape[-1] ** -0.5
        logits = logits.masked_fill(~self.present[:, None], torch.finfo(logits.dtype).min)
        attention = self.family.all_heads(scorer, logits.softmax(dim=-1))
        return attention.mean(dim=1).masked_fill(~self.present, 0.0)

    def text_attention(self, queries: Tensor | None = None, scored_by: ScoredBy = "previous") -> Tensor:
        if queries is None:
            one = torch.ones_like(self.last[:, None], dtype=torch.bool)
            return self._mean_attention(Rows(self.last[:, None], None, self.visual.length), one, scored_by)
        return self._mean_attention(self.words, queries & self.text_present, scored_by)

    def each_text_attention(self, queries: Tensor, scored_by: ScoredBy = "previous") -> Tensor:
        scorer, _ = self._scorer(scored_by)
        parts = self._attention(self.words, scored_by)
        found = torch.cat([self.family.all_heads(scorer, part).mean(dim=1) for _, part in parts], dim=1)
        asked = queries & self.text_present
        return found.masked_fill(~(asked[..., None] & self.present[:, None]), 0.0)

    def visual_attention(self, scored_by: ScoredBy = "previous") -> Tensor:
        return self._mean_attention(self.visual, self.present, scored_by)

    def keys(self, scored_by: ScoredBy = "previous", rotary: bool = True) -> tuple[Tensor, Tensor]:
        scorer, seen = self._scorer(scored_by)
        visual, words = (self._keys(scorer, seen, rows, rotary) for rows in (self.visual, self.words))
        return self.family.all_heads(scorer, visual, "k"), self.family.all_heads(scorer, words, "k")

    def _mean_attention(self, rows: Rows, asked: Tensor, scored_by: ScoredBy) -> Tensor:
        """Attention of some tokens to the visual ones, mean over those that are asked: [B, heads, V] float32."""
        weights = asked.float() / asked.sum(1, keepdim=True).clamp(min=1)
        shares = ((part * weights[:, None, at, None]).sum(dim=2) for at, part in self._attention(rows, scored_by))
        total = sum(shares, start=torch.zeros((), device=self.present.device))
        total = total.masked_fill(~self.present[:, None], 0.0)
        return self.family.all_heads(self._scorer(scored_by)[0], total)

    def _attention(self, rows: Rows, scored_by: ScoredBy) -> Iterator[tuple[slice, Tensor]]:
        """Attention of some tokens to the visual ones, by this process's heads: [B, heads, some of them, V] float32.

        A query sees the visual tokens in play and the text, up to itself. Chunks of queries keep the map small; there
        is one at least.
        """
        scorer, seen = self._scorer(scored_by)
        device = self.present.device
        keys = torch.cat([self._keys(scorer, seen, part, True) for part in (self.visual, self.words)], dim=2)
        index = torch.cat([self.visual.index, self.words.index], dim=1)
        valid = torch.cat([self.present, self.text_present], dim=1)
        states, rotary = seen.at(rows)
        queries = self.family.queries(scorer, states, rotary)
        size, visual = queries.shape[-1], self.visual.index.shape[1]
        step = max(1, CHUNK // max(1, len(keys) * queries.shape[1] * keys.shape[2]))
        for start in range(0, max(1, queries.shape[2]), step):
            part = slice(start, start + step)
            logits = many_products(queries[:, :, part], keys).to(device) * size**-0.5
            seen_by = (index[:, None] <= rows.index[:, part, None]) & valid[:, None]  # [B, q, V + T]
            logits = logits.masked_fill(~seen_by[:, None], torch.finfo(logits.dtype).min)
            yield part, logits.softmax(dim=-1)[..., :visual]

    def _keys(self, scorer: object, seen: LayerInput, rows: Rows, rotary: bool) -> Tensor:
        states, tables = seen.at(rows)
        return self.family.keys(scorer, states, tables if rotary else None)

    def _scorer(self, scored_by: ScoredBy) -> tuple[torch.nn.Module, LayerInput]:
        """The layer whose attention is asked for, and what it received."""
        if scored_by == "own":
            return self.family.layers[self.layer], self.here
        if self.before is None:
            raise HalfVError(
                f"the layer before {self.layer} was asked for and is not there: give the strategy "
                "needs = Needs(before=True), and a layer of at least 1"
            )
        return self.family.layers[self.layer - 1], self.before

    def _scene(self) -> Scene:
        if self.scene is None:
            raise HalfVError(
                "nothing is known of the pictures here: give the strategy needs = Needs(structure=True), or name the "
                "signals of the vision tower there"
            )
        return self.scene


def many_products(queries: Tensor, keys: Tensor) -> Tensor:
    """Products of queries [B, heads, q, d] with keys [B, kv_heads, n, d]: float32 [B, heads, q, n]."""
    with torch.autocast(queries.device.type, enabled=False):  # it would multiply in half precision again
        shared = queries.float().unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # [B, kv_heads, group * q, d]
        found = shared @ keys.float().mT
        return found.unflatten(2, (-1, queries.shape[2])).flatten(1, 2)
