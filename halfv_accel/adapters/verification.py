"""Is HalfV's idea of a layer the layer's own? Measured on four random tokens before anything is installed.

Scores and frozen keys and values are computed from a layer's norm and projections. A model class that HalfV has never
seen, or one that a new release of transformers changed, may do more there: scale, clip, normalise. So every layer runs
once, at the cost of a decoding step, and its keys, values and attention output are compared with HalfV's own. What was
found is remembered for as long as the layer lives and stays what it is (`adapters.signature`), so that accelerating a
model again costs next to nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from halfv_accel.adapters.base import Family, Rotary
from halfv_accel.adapters.placement import check_placement
from halfv_accel.adapters.signature import signatures
from halfv_accel.errors import HalfVError

TOKENS = 4
MASKED = ("sdpa", "eager")  # attention implementations that can be shown any mask
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest entry; a wrong formula is off by its own size
HALF_PRECISION = 5e-2
# What a layer's forward may take: these HalfV shortens, replaces, or can pass on as they are.
ARGUMENTS = {
    *("self", "hidden_states", "attention_mask", "position_embeddings", "position_ids", "past_key_values"),
    *("use_cache", "cache_position", "output_attentions"),
}
_verified: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()  # by layer, its signature when it passed


class Witness:
    """Stands for a cache, and keeps the keys and values that the attention hands it."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


@torch.no_grad()
def check_projections(family: Family, first: int = 0) -> None:
    """Refuse a model whose attention computes other queries, keys or values than the family's formulas.

    Layers that passed and have not changed since are taken at their word. The others run, and the device is waited for
    once, after all of them.

    Parameters
    ----------
    first : int
        Layers from here on are checked. Each of them: some models leave out position embeddings in every fourth.

    Raises
    ------
    HalfVError
        Naming the layer and its attention, and what differs; or what keeps layers from being run one by one.
    """
    found = signatures(family, first)
    new = [_verified.get(family.layers[index]) != signature for index, signature in found.items()]
    if any(new):
        check_placement(family)
    if family.ranks is not None:  # a layer runs in all processes, or in none
        new = family.ranks.any(torch.tensor(new)).tolist()
    due = [index for index, changed in zip(found, new, strict=True) if changed]
    if not due:
        return
    trial = Trial(family)
    compared = [(index, part, wrong) for index in due for part, wrong in trial.of(index)]
    for (index, part, _), differs in zip(compared, _read(family, [wrong for *_, wrong in compared]), strict=True):
        if differs:
            raise HalfVError(
                f"{_kind(family, index)} is not supported: in layer {index} HalfV computes other {part} than its "
                "attention does, so write an adapter as CONTRIBUTING.md describes"
            )
    _verified.update({family.layers[index]: found[index] for index in due})


def _read(family: Family, wrong: list[Tensor]) -> list[bool]:
    """The verdicts, by one wait for the device; under tensor parallelism what one process finds wrong all refuse."""
    verdicts = torch.stack([verdict.to(wrong[0].device) for verdict in wrong])
    return (verdicts if family.ranks is None else family.ranks.any(verdicts)).tolist()


def _kind(family: Family, index: int) -> str:
    layer: Any = family.layers[index]
    return f"{type(family.model).__name__} with {type(getattr(layer, 'self_attn', layer)).__name__}"


class Trial:
    """Runs single layers on random tokens. What layers of one device and dtype are given is made once."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._made: dict[tuple[torch.device, torch.dtype], Inputs] = {}

    def of(self, index: int) -> Iterator[tuple[str, Tensor]]:
        """What HalfV computes of a layer, and whether its attention computes something else: bool on its device."""
        layer: Any = self.family.layers[index]
        try:
            pairs = self._pairs(layer)
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else "no message"
            raise HalfVError(
                f"{_kind(self.family, index)} is not supported: layer {index} does not work as HalfV expects "
                f"({type(error).__name__}: {why})"
            ) from error
        for part, (mine, own) in pairs.items():
            yield part, _differs(mine, own, HALF_PRECISION if _quantized(layer) else TOLERANCE.get(own.dtype))

    def _pairs(self, layer: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """HalfV's result and the layer's own, by what they are."""
        parameters = inspect.signature(type(layer).forward).parameters.values()
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        unknown = {parameter.name for parameter in parameters if parameter.kind not in variadic} - ARGUMENTS
        if unknown:
            raise TypeError(f"it takes {', '.join(sorted(unknown))}, which HalfV cannot shorten")
        given, witness, outputs = self._inputs(layer), Witness(), []
        handle = layer.self_attn.register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            result = layer(
                given.states,
                attention_mask=given.mask,
                position_embeddings=given.rotary,
                position_ids=None,
                past_key_values=witness,
                use_cache=True,
            )
        finally:
            handle.remove()
        if not isinstance(result, Tensor):
            raise TypeError(f"a layer returns a {type(result).__name__} and not a tensor")
        queries = self.family.queries(layer, given.states, given.rotary)
        keys, values = self.family.keys_and_values(layer, given.states, given.rotary)
        attended = layer.self_attn.o_proj(_attend(queries, keys, values, given.allowed).to(given.states.dtype))
        output = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
        return {"keys": (keys, witness.keys), "values": (values, witness.values), "queries": (attended, output)}

    def _inputs(self, layer: nn.Module) -> Inputs:
        dtype, place = _dtype(self.family, layer), _device(layer)
        if (place, dtype) not in self._made:
            width, draw = self.family.text.config.hidden_size, torch.Generator().manual_seed(0)
            states = torch.randn(1, TOKENS, width, generator=draw).to(place, dtype)
            used = self.family.text.config._attn_implementation
            allowed = _allowed(used, states.device)
            mask, rotary = _mask(used, allowed, dtype), _rotary(self.family, states)
            self._made[place, dtype] = Inputs(states, rotary, allowed, mask)
        return self._made[place, dtype]


@dataclass(frozen=True)
class Inputs:
    """What a layer is tried with."""

    states: Tensor
    rotary: Rotary
    allowed: Tensor  # [n, n] bool
    mask: Tensor | None  # the same for the attention kernel


def _dtype(family: Family, layer: nn.Module) -> torch.dtype:
    """The type of a layer's states: its weights', or the language model's where they are quantized to integers."""
    weight = next((parameter for parameter in layer.parameters() if parameter.ndim > 1), None)
    return family.text.dtype if weight is None or not weight.is_floating_point() else weight.dtype


def _quantized(layer: Any) -> bool:
    """Do a layer's projections hold something else than weights of floating point? Their results are rounded more."""
    weights = [getattr(getattr(layer.self_attn, f"{kind}_proj"), "weight", None) for kind in "qkvo"]
    return not all(isinstance(weight, Tensor) and weight.is_floating_point() for weight in weights)


def _device(layer: nn.Module) -> torch.device:
    """Where a layer computes; accelerate keeps offloaded weights on "meta" and the place in its hooks."""
    places = [tensor.device for tensor in (*layer.parameters(), *layer.buffers()) if not tensor.is_meta]
    if places:
        return places[0]
    hooks = (getattr(module, "_hf_hook", None) for module in layer.modules())
    asked = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in asked if place is not None), "cpu"))


def _rotary(family: Family, states: Tensor) -> Rotary:
    """Position embeddings of the first tokens; multimodal ones take three rows of positions."""
    positions = torch.arange(3, TOKENS + 3, device=states.device)[None]
    parameters = getattr(family.text.config, "rope_parameters", None) or {}
    if "mrope_section" in parameters:
        positions = positions.expand(3, 1, -1)
    return family.text.rotary_emb(states, positions)


def _allowed(used: str, device: torch.device) -> Tensor:
    """What each token may attend to: causal; where a mask can say so, the second is hidden from those behind it.

    A mask without effect, as other tools' hooks can make it, would show frozen tokens to the text that comes before.
    """
    allowed = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=device).tril()
    if used in MASKED:
        allowed[2:, 1] = False
    return allowed


def _mask(used: str, allowed: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The same as the attention kernel wants it; flash attention is causal by itself."""
    if used == "eager":
        return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]
    return allowed[None, None] if used in MASKED else None


def _attend(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention, written out: [1, n, heads * head_dim]."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (heads.repeat_interleave(groups, dim=1).float() for heads in (keys, values))
    logits = queries.float() @ keys.mT / math.sqrt(queries.shape[-1])
    return (logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ values).transpose(1, 2).flatten(2)


def _differs(mine: Tensor, own: Tensor, tolerance: float | None) -> Tensor:
    """Is the largest difference more than this share of the largest entry? Stays on the device."""
    if mine.shape != own.shape:
        return torch.ones((), dtype=torch.bool, device=own.device)
    return ~((mine - own).abs().max() <= (tolerance or HALF_PRECISION) * own.abs().max())  # NaN is no agreement
