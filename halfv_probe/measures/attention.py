"""How attention is divided between visual and text tokens, layer by layer (HalfV, Section 3.2 and Figure 3).

The attention map of a layer, averaged over heads, is computed beside the running model from what the layer receives:
softmax(q k^T / sqrt(head_dim)) with position embeddings and with the mask that the layer itself is given. Only some
queries are asked for, and only as many rows at a time as fit into a fixed number of entries, so a map [heads, S, S] is
never held, and the model may run its usual kernel.

Figure 3 shows heatmaps only. Here they are summed up as shares: of the attention that a query gives away (it sums to
one), how much goes to visual and how much to text tokens. Queries are the text tokens behind the first visual token,
since text before it cannot see a picture, and, apart from these, the last token of the prompt.

>>> attention_balance(model, inputs).text_to_visual.shape  # doctest: +SKIP
torch.Size([32])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from halfv_accel.adapters import Family, family_of
from halfv_accel.adapters.base import Rotary, heads_of
from halfv_accel.engine.masks import as_bool
from halfv_accel.engine.prefill import ends_in_visual
from halfv_accel.engine.refusals import check_evaluating, check_prompt
from halfv_accel.errors import HalfVError
from halfv_probe.measures.tokens import tokens_of

ENTRIES = 2**24  # of the maps of all heads held at once: 64 MiB in float32


@dataclass(frozen=True)
class AttentionBalance:
    """Shares of attention per decoder layer, float64 [L], between 0 and 1; each pair of them sums to 1.

    ``text_*`` is the mean over text queries behind the first visual token, ``last_*`` the last token alone;
    ``*_visual`` goes to all visual tokens, ``*_text`` to all text tokens, the query itself included.
    """

    text_to_visual: Tensor
    text_to_text: Tensor
    last_to_visual: Tensor
    last_to_text: Tensor


@torch.no_grad()
def attention_balance(model: PreTrainedModel, inputs: Mapping[str, Any]) -> AttentionBalance:
    """How attention is divided between visual and text tokens, mean over the batch.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    inputs : mapping
        What the processor returns for one or several prompts, padded on either side.

    Raises
    ------
    HalfVError
        If the model is not supported, or a prompt has no visual token or ends in one.
    """
    family = family_of(model)
    tokens = tokens_of(family, inputs)
    check_prompt(ends_in_visual(tokens.visual, tokens.last).tolist())
    asked = tokens.text_behind
    with watch_shares(family, asked, [tokens.visual, tokens.text]) as shares:
        model(**inputs, use_cache=False, logits_to_keep=1)
    asked, last = asked.cpu(), tokens.last.cpu()
    text = ((shares * asked).sum(-1) / asked.sum(-1)).mean(-1)  # [2, L]
    end = shares[..., torch.arange(len(last)), last].mean(-1)
    return AttentionBalance(text[0], text[1], end[0], end[1])


@contextmanager
def watch_attention(family: Family, queries: Tensor, see: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``see(layer, positions, rows)`` for a few queries after the other of every layer of every forward pass.

    Parameters
    ----------
    queries : (B, S) bool Tensor
        Positions asked for; one that any prompt of the batch asks for is computed for all of them.
    see : callable
        Gets the decoder layer, the positions long [q], and the rows of the head-mean map, float32 [B, q, S], on the
        layer's device. Rows of padding are there and mean nothing.

    Raises
    ------
    HalfVError
        If the model is in training mode, or its attention kernel does not show its mask.
    """
    check_evaluating(family.model)
    used = family.text.config._attn_implementation
    if used not in ("sdpa", "eager"):
        raise HalfVError(
            f"attention implementation '{used}' cannot be measured: call model.set_attn_implementation('sdpa')"
        )
    positions = queries.any(dim=0).nonzero()[:, 0]

    def before(index: int) -> Callable[[nn.Module, tuple, dict], None]:
        @torch.no_grad()  # the forward itself may keep a graph
        def hook(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            chunks = attention_rows(
                family, layer, states, kwargs["position_embeddings"], kwargs.get("attention_mask"), positions
            )
            for some, rows in chunks:
                see(index, some, rows)

        return hook

    with ExitStack() as installed:
        for index, layer in enumerate(family.layers):
            installed.callback(layer.register_forward_pre_hook(before(index), with_kwargs=True).remove)
        yield


@contextmanager
def watch_shares(family: Family, queries: Tensor, kinds: list[Tensor]) -> Iterator[Tensor]:
    """The attention that queries give to all tokens of a kind: float64 [kinds, L, B, S], filled as the model runs.

    ``kinds`` are bool [B, S] masks of keys; ``queries`` are as in `watch_attention`, others stay 0.
    """
    shares = torch.zeros(len(kinds), len(family.layers), *queries.shape, dtype=torch.float64)

    def see(layer: int, positions: Tensor, rows: Tensor) -> None:
        for kind, keys in enumerate(kinds):
            given = rows.double() @ keys.to(rows.device).double()[..., None]
            shares[kind, layer][:, positions.cpu()] = given[..., 0].cpu()

    with watch_attention(family, queries, see):
        yield shares


def attention_rows(
    family: Family, layer: Any, states: Tensor, rotary: Rotary, mask: Tensor | None, positions: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of a layer's head-mean attention map, some at a time: pairs of positions [q] and rows [B, q, S].

    ``states`` [B, S, H] and ``rotary`` [B or 1, S, head_dim] are the layer's input, ``mask`` is None for plain causal
    attention or [B or 1, 1, S, S], bool or as the eager kernel has it.
    """
    keys = _exact(family.keys(layer, states, rotary))
    positions = positions.to(keys.device)
    group, length = heads_of(layer, "q") // heads_of(layer, "k"), keys.shape[2]
    keys = keys.repeat_interleave(group, dim=1)
    heads = keys.shape[1]  # of this process
    for some in positions.split(max(1, ENTRIES // (len(keys) * heads * length))):
        at = [table.to(keys.device)[:, some] for table in (states, *rotary)]
        queries = _exact(family.queries(layer, at[0], (at[1], at[2])))
        if mask is None:
            allowed = torch.arange(length, device=keys.device) <= some[:, None]
        else:
            allowed = as_bool(mask[:, :, some.to(mask.device)]).to(keys.device)
        logits = queries @ keys.mT / math.sqrt(queries.shape[-1])
        logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
        yield some, family.all_heads(layer, logits.softmax(dim=-1)).mean(dim=1)


def _exact(heads: Tensor) -> Tensor:
    """At least float32: kernels, too, take the softmax no coarser than that."""
    return heads.to(torch.promote_types(heads.dtype, torch.float32))
