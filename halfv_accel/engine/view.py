"""What a strategy gets to see: the visual tokens in front of a layer, and the last text token's attention to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfv_accel.adapters import Family
from halfv_accel.adapters.base import Rotary, products
from halfv_accel.engine.rows import Rows
from halfv_accel.plan import Fidelity
from halfv_accel.strategies import ScoredBy


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
    before, here : LayerInput
        Inputs of layer L-1 and of layer L.
    visual : Rows
        Visual tokens, packed to the left.
    last : (B,) long Tensor
        Position of each row's last text token.
    """

    family: Family
    layer: int
    before: LayerInput
    here: LayerInput
    visual: Rows
    last: Tensor
    fidelity: Fidelity

    @property
    def present(self) -> Tensor:
        return self.visual.present()

    @property
    def states(self) -> Tensor:
        """Hidden states [B, V, H]; "reference" passes them through the final norm first, as the public code does."""
        states = self.visual.gather(self.here.states)
        return self.family.normed(states).to(states.device) if self.fidelity == "reference" else states

    def last_token_scores(self, rotary: bool, scored_by: ScoredBy = "previous") -> Tensor:
        """softmax(q k / sqrt(d)) over the visual keys, mean over heads: [B, V] float32, 0 on padding.

        By layer L-1's own norm and projections on what that layer received, as the public code does ("previous"), or
        by layer L's on what the stage receives, as the paper's alpha^(L) can be read ("own"). "reference" leaves out
        1/sqrt(d), as the public code does.
        """
        seen, number = (self.before, self.layer - 1) if scored_by == "previous" else (self.here, self.layer)
        scorer = self.family.layers[number]
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
