"""What a decoder layer is, as far as a check of its formulas depends on it: classes, forwards, hooks, kinds of tensors.

Two equal signatures of a layer mean that nothing was exchanged in between: no module, class or forward, no hook, no
number among the attention's attributes, and no parameter for one of another type, dtype, device or shape. Values of
weights may change; formulas hold for all of them. Objects are held weakly, so that remembering a signature keeps no
model alive.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from halfv_accel.adapters.base import Family

FORMULAS = ("queries", "keys", "keys_and_values", "unrotated_products", "_heads", "_normed_for", "_rotate")
SHARED = ("apply_rotary_pos_emb", "eager_attention_forward")  # of the modeling file; other tools replace them
NUMBERS = (int, float, bool, str)
OWN_HOOK = "halfv_hook"  # attribute of the owners of HalfV's own hooks, which let a layer that runs alone pass


def signatures(family: Family, first: int = 0) -> dict[int, tuple]:
    """The signatures of a model's layers from one on, by index."""
    used = family.text.config._attn_implementation
    common = (
        *(_same(getattr(type(family), formula)) for formula in FORMULAS),
        used,
        _same(ALL_ATTENTION_FUNCTIONS.get(used)),
        *_module(family.text.rotary_emb),
        *torch_module._global_forward_hooks,
        *torch_module._global_forward_pre_hooks,
    )
    layers = list(family.layers)
    return {index: (common, _layer(layers[index])) for index in range(first, len(layers))}


def _layer(layer: nn.Module) -> tuple:
    attention = getattr(layer, "self_attn", layer)
    file = sys.modules.get(type(attention).__module__)
    parts: list[Any] = [_same(getattr(file, name, None)) for name in SHARED]
    for owner in (layer, attention):
        parts += [value for value in vars(owner).values() if type(value) in NUMBERS]
    modules = [layer]
    for module in modules:  # grows while it is walked
        parts += _module(module)
        modules += [child for child in module._modules.values() if child is not None]
    return tuple(parts)


def _module(module: nn.Module) -> list[Any]:
    kind = type(module)
    parts = [
        _same(module),
        _same(kind),
        _same(kind.forward),
        _same(vars(module).get("forward")),
        *_hooks(module._forward_hooks),
        *_hooks(module._forward_pre_hooks),
    ]
    for tensors in (module._parameters, module._buffers):
        for tensor in tensors.values():
            if tensor is not None:
                parts += (_same(type(tensor)), tensor.dtype, tensor.device, tensor.shape)
    return parts


def _hooks(hooks: Mapping[int, Any]) -> Iterable[int]:
    """Numbers of a module's hooks, which torch never gives twice, but for HalfV's own."""
    return [number for number, hook in hooks.items() if not hasattr(getattr(hook, "__self__", None), OWN_HOOK)]


def _same(thing: Any) -> Any:
    """Something that is equal to what this function makes of the same object, and of no other; holds it weakly."""
    try:
        return weakref.ref(thing)
    except TypeError:  # None, and what takes no weak references
        return id(thing)
