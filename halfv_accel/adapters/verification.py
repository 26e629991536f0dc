"""Is HalfV's idea of a layer the layer's own? Measured on four random tokens before anything is installed.

Scores and frozen keys and values are computed from a layer's norm and projections. A model class that HalfV has never
seen, or one that a new release of transformers changed, may do more there: scale, clip, normalise. So every layer runs
once, at the cost of a decoding step, and its keys, values and attention output are compared with HalfV's own.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from halfv_accel.adapters.base import Family, Rotary
from halfv_accel.errors import HalfVError

TOKENS = 4
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest entry; a wrong formula is off by its own size
HALF_PRECISION = 5e-2
# What a layer's forward may take: these HalfV shortens, replaces, or can pass on as they are.
ARGUMENTS = {
    *("self", "hidden_states", "attention_mask", "position_embeddings", "position_ids", "past_key_values"),
    *("use_cache", "cache_position", "output_attentions"),
}


class Witness:
    """Stands for a cache, and keeps the keys and values that the attention hands it."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


@torch.no_grad()
def check_projections(family: Family, first: int = 0) -> None:
    """Refuse a model whose attention computes other queries, keys or values than the family's formulas.

    Parameters
    ----------
    first : int
        Layers from here on are checked. Each of them: some models leave out position embeddings in every fourth.

    Raises
    ------
    HalfVError
        Naming the layer and its attention, and what differs.
    """
    for index, layer in enumerate(family.layers):
        if index < first:
            continue
        kind = f"{type(family.model).__name__} with {type(getattr(layer, 'self_attn', layer)).__name__}"
        try:
            differs = _difference(family, layer)
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else "no message"
            raise HalfVError(
                f"{kind} is not supported: layer {index} does not work as HalfV expects ({type(error).__name__}: {why})"
            ) from error
        if differs is not None:
            raise HalfVError(
                f"{kind} is not supported: in layer {index} HalfV computes other {differs} than its attention does, "
                "so write an adapter as CONTRIBUTING.md describes"
            )


def _difference(family: Family, layer: Any) -> str | None:
    """What of a layer's attention HalfV does not reproduce, or None."""
    parameters = inspect.signature(type(layer).forward).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    unknown = {parameter.name for parameter in parameters if parameter.kind not in variadic} - ARGUMENTS
    if unknown:
        raise TypeError(f"it takes {', '.join(sorted(unknown))}, which HalfV cannot shorten")
    weight = next(parameter for parameter in layer.parameters() if parameter.ndim > 1)
    states = torch.randn(1, TOKENS, family.text.config.hidden_size, generator=torch.Generator().manual_seed(0))
    dtype = weight.dtype if weight.is_floating_point() else family.text.dtype  # quantized weights are integers
    states = states.to(_device(layer, weight), dtype)
    rotary = _rotary(family, states)
    witness, outputs = Witness(), []
    handle = layer.self_attn.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        result = layer(
            states,
            attention_mask=_causal(family, states),
            position_embeddings=rotary,
            position_ids=None,
            past_key_values=witness,
            use_cache=True,
        )
    finally:
        handle.remove()
    if not isinstance(result, Tensor):
        raise TypeError(f"a layer returns a {type(result).__name__} and not a tensor")
    queries = family.queries(layer, states, rotary)
    keys, values = family.keys_and_values(layer, states, rotary)
    attended = layer.self_attn.o_proj(_attend(queries, keys, values).to(states.dtype))
    output = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    pairs = {"keys": (keys, witness.keys), "values": (values, witness.values), "queries": (attended, output)}
    return next((name for name, (mine, own) in pairs.items() if not _alike(mine, own)), None)


def _device(layer: Any, weight: Tensor) -> torch.device:
    """Where a layer computes; accelerate keeps offloaded weights on "meta" and the place in its hooks."""
    if not weight.is_meta:
        return weight.device
    hooks = (getattr(module, "_hf_hook", None) for module in layer.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in places if place is not None), "cpu"))


def _rotary(family: Family, states: Tensor) -> Rotary:
    """Position embeddings of the first tokens; multimodal ones take three rows of positions."""
    positions = torch.arange(3, TOKENS + 3, device=states.device)[None]
    parameters = getattr(family.text.config, "rope_parameters", None) or {}
    if "mrope_section" in parameters:
        positions = positions.expand(3, 1, -1)
    return family.text.rotary_emb(states, positions)


def _causal(family: Family, states: Tensor) -> Tensor | None:
    """A causal mask for the one kernel that does not make its own."""
    if family.text.config._attn_implementation != "eager":
        return None
    least = torch.finfo(states.dtype).min
    return torch.full((1, 1, TOKENS, TOKENS), least, dtype=states.dtype, device=states.device).triu(1)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal softmax attention, written out: [1, n, heads * head_dim]."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (heads.repeat_interleave(groups, dim=1).float() for heads in (keys, values))
    logits = queries.float() @ keys.mT / math.sqrt(queries.shape[-1])
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=logits.device).triu(1)
    return (logits.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(1, 2).flatten(2)


def _alike(mine: Tensor, own: Tensor) -> bool:
    tolerance = TOLERANCE.get(own.dtype, HALF_PRECISION)
    return mine.shape == own.shape and bool((mine - own).abs().max() <= tolerance * own.abs().max())
