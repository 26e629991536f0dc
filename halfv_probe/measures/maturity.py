"""Semantic maturity (InfoPrune, Section 2.2 and Figure 15): from which layer on the next token is decided.

At every layer boundary the last token's state is read as if the model ended there: final norm, language model head,
softmax (a logit lens). Where the most likely token stops changing and its probability settles, the layers behind add
nothing to what comes next, and InfoPrune prunes. Boundary 0 is the input of the first decoder layer; boundary L is the
output of the last one, where the lens shows what the model itself predicts.

>>> semantic_maturity(model, inputs).probability.shape  # doctest: +SKIP
torch.Size([1, 33])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from halfv_accel.adapters import Family, family_of
from halfv_accel.adapters.base import beside
from halfv_accel.engine.refusals import check_evaluating
from halfv_probe.measures.capture import watch_boundaries
from halfv_probe.measures.tokens import tokens_of


@dataclass(frozen=True)
class SemanticMaturity:
    """The most likely next token at each boundary: its id, long [B, L + 1], and ``probability``, float64 [B, L + 1]."""

    top1: Tensor
    probability: Tensor

    @property
    def agrees(self) -> Tensor:
        """Whether a boundary names the token that the model ends with: bool [B, L + 1], True at L."""
        return self.top1 == self.top1[:, -1:]

    @property
    def stable_from(self) -> Tensor:
        """The first boundary from which on the token stays the final one: long [B], at most L."""
        return (self.agrees.flip(1).int().cumprod(dim=1) == 0).sum(dim=1)


@torch.no_grad()
def semantic_maturity(model: PreTrainedModel, inputs: Mapping[str, Any]) -> SemanticMaturity:
    """What each boundary would say next.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    inputs : mapping
        What the processor returns for one or several prompts, padded on either side. Pictures are not required.

    Raises
    ------
    HalfVError
        If the model is not supported or in training mode.
    """
    check_evaluating(model)
    family = family_of(model)
    with watch_maturity(family, tokens_of(family, inputs, pictures=False).last) as done:
        model(**inputs, use_cache=False, logits_to_keep=1)
    return done()


@contextmanager
def watch_maturity(family: Family, last: Tensor) -> Iterator[Callable[[], SemanticMaturity]]:
    """Read the boundaries of the next forward, which runs inside the block; yields what gives the result afterwards.

    ``last`` is the position of each prompt's last token, long [B].
    """
    top1: list[Tensor] = []
    probability: list[Tensor] = []

    def see(_boundary: int, states: Tensor) -> None:
        ends = states[torch.arange(len(last), device=states.device), last.to(states.device)]
        most = logit_lens(family, ends).double().softmax(dim=-1).max(dim=-1)
        top1.append(most.indices.cpu())
        probability.append(most.values.cpu())

    with watch_boundaries(family.layers, see):
        yield lambda: SemanticMaturity(torch.stack(top1, dim=1), torch.stack(probability, dim=1))


def logit_lens(family: Family, states: Tensor) -> Tensor:
    """Logits of the next token, [n, vocabulary], as if these states [n, H] of any boundary were the decoder's last."""
    head = family.model.get_output_embeddings()
    return head(beside(head, family.normed(states)))
