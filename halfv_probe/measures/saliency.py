"""Saliency flow (InfoPrune, Eq. 4-5): how much the loss depends on what visual tokens send, layer by layer.

Eq. 4 weighs the attention that token i pays to token j by the loss's gradient at token i, seen through the layer's
value projection:

    I_l(i, j) = || g_i W_l^V ||_2 A_l(i, j)

with A averaged over heads, and W^V taken as it is stored, from the model's width to all value heads, so that grouped
heads need no special care. S_vt sums it over text tokens i and visual tokens j, S_vv over visual i and j, both divided
by the number of visual tokens. (Eq. 5 writes j in I, i in V for S_vt, but its words, and causal attention, ask for what
text takes from the picture.)

For g the paper writes the gradient with respect to the FINAL layer's states. Behind the final layer tokens no longer
exchange anything, so this gradient is zero at every token whose next one is not in the loss: at all visual tokens but
the last one before text, and S_vv would vanish. Read here is the gradient with respect to the states that layer l
itself puts out, the same thing for the last layer and a living one for the others. ``gradient="last"`` follows the
letter.

One forward and one backward pass, the decoder only; it takes the memory of a training step without its optimizer, and
is therefore no part of every calibration.

>>> saliency_flow(model, inputs).visual_to_text.shape  # doctest: +SKIP
torch.Size([32])
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from halfv_accel.adapters import Family, family_of
from halfv_accel.errors import HalfVError
from halfv_probe.measures.attention import watch_shares
from halfv_probe.measures.capture import watch_boundaries
from halfv_probe.measures.maturity import logit_lens
from halfv_probe.measures.tokens import Tokens, tokens_of

Loss = Literal["prompt", "next"]


@dataclass(frozen=True)
class SaliencyFlow:
    """Flow per decoder layer, float64 [L], means over prompts, in nats per unit of a state.

    ``visual_to_text`` is S_vt, ``intra_visual`` S_vv; ``loss`` is what was differentiated, in nats.
    """

    visual_to_text: Tensor
    intra_visual: Tensor
    loss: float


def saliency_flow(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    loss: Loss = "prompt",
    gradient: Literal["layer", "last"] = "layer",
) -> SaliencyFlow:
    """Flow from visual tokens to text and among themselves.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode. Its weights get no gradient, whether they require one or
        not; it is left as it was.
    inputs : mapping
        What the processor returns for one or several prompts, padded on either side.
    loss : {"prompt", "next"}
        Cross entropy of the prompt's text behind its first visual token, mean over tokens, or of the model's own most
        likely next token. The latter's gradient shrinks with 1 - p: prompts that the model is sure of hardly count.
    gradient : {"layer", "last"}
        At the output of the layer, or, as Eq. 4 has it, of the last one.

    Raises
    ------
    HalfVError
        If the model is not supported or quantized, or a prompt has no visual token, or, for ``loss="prompt"``, no text
        behind one.
    """
    if loss not in ("next", "prompt") or gradient not in ("layer", "last"):
        raise HalfVError(f"cannot measure loss={loss!r}, gradient={gradient!r}: choose prompt or next, layer or last")
    family = family_of(model)
    tokens = tokens_of(family, inputs)
    if loss == "prompt" and not tokens.text_behind.any(dim=1).all():
        raise HalfVError("a prompt has no text behind its picture, which loss='prompt' predicts: use loss='next'")
    values = [_value_projection(index, layer) for index, layer in enumerate(family.layers)]
    boundaries, shares = _prefill_with_graph(family, tokens, inputs)
    losses = _losses(family, tokens, inputs["input_ids"], boundaries[-1], loss)
    outputs = boundaries[1:] if gradient == "layer" else boundaries[-1:] * len(values)
    # Prompts do not see each other, so the gradients of a sum of losses stay apart.
    gradients = torch.autograd.grad(losses, outputs, torch.ones_like(losses))
    size = torch.stack([_through(g, w) for g, w in zip(gradients, values, strict=True)])  # [L, B, S]
    flow = size * shares
    visual, text = tokens.visual.cpu(), tokens.text.cpu()
    by_target = [((flow * kind).sum(-1) / visual.sum(-1)).mean(-1) for kind in (text, visual)]
    return SaliencyFlow(by_target[0], by_target[1], losses.detach().mean().item())


def _prefill_with_graph(family: Family, tokens: Tokens, inputs: Mapping[str, Any]) -> tuple[list[Tensor], Tensor]:
    """States at boundaries 0..L with a graph between them, and each token's attention to visual tokens [L, B, S]."""
    boundaries: dict[int, Tensor] = {}
    with torch.no_grad(), ExitStack() as installed:  # the vision tower keeps no graph; on leaving, the mode is restored
        installed.callback(family.layers[0].register_forward_pre_hook(_start_graph, with_kwargs=True).remove)
        shares = installed.enter_context(watch_shares(family, tokens.visual | tokens.text, [tokens.visual]))
        installed.enter_context(watch_boundaries(family.layers, boundaries.__setitem__))
        family.model(**inputs, use_cache=False, logits_to_keep=1)
    return list(boundaries.values()), shares[0]


def _start_graph(_layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Let the graph begin at the decoder, also in a model none of whose weights requires a gradient."""
    torch.set_grad_enabled(True)
    if args:
        return (args[0].detach().requires_grad_(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}


@torch.enable_grad()
def _losses(family: Family, tokens: Tokens, ids: Tensor, states: Tensor, loss: Loss) -> Tensor:
    """Cross entropy of each prompt in nats: [B]."""
    if loss == "next":
        rows, places = torch.arange(len(ids), device=ids.device), tokens.last
    else:
        rows, places = (tokens.text_behind.nonzero() - torch.tensor([0, 1], device=ids.device)).T  # one token before
    rows, places = rows.to(states.device), places.to(states.device)
    logits = logit_lens(family, states[rows, places]).double()
    rows, ids = rows.to(logits.device), ids.to(logits.device)
    target = logits.detach().argmax(dim=-1) if loss == "next" else ids[rows, places.to(logits.device) + 1]
    each = F.cross_entropy(logits, target, reduction="none")
    return each.new_zeros(len(ids)).index_add(0, rows, each) / rows.bincount(minlength=len(ids))


def _value_projection(index: int, layer: Any) -> Tensor:
    """W^V of a layer: [kv_heads * head_dim, H]."""
    weight = layer.self_attn.v_proj.weight
    if weight.is_meta or not weight.is_floating_point():
        raise HalfVError(
            f"layer {index} keeps its value projection quantized or offloaded, and saliency multiplies by it: "
            "load the model unquantized and on one device"
        )
    return weight.detach()


def _through(gradient: Tensor, weight: Tensor) -> Tensor:
    """Norm of a gradient [B, S, H] behind the value projection: float64 [B, S] on the CPU."""
    return F.linear(gradient.to(weight.device).float(), weight.float()).norm(dim=-1).double().cpu()
