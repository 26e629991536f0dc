"""The key/value cache of layers that hold fewer tokens than the first layer.

transformers asks only layer 0 how long a sequence is. Stages start at layer 1 or later, so layer 0 is always complete
and all of `generate`'s bookkeeping stays right; a reduced layer merely has to remember which of its places are padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from halfv_accel.errors import HalfVError


class ReducedLayer(DynamicLayer):
    """A `DynamicLayer` that knows its prefix: what the prefill left in it, padding included.

    It takes updates only from an accelerated forward. Without HalfV's hooks the model would build a mask for layer 0's
    length; such a mask has the wrong width, or, worse, is None and hides nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prefix = 0
        self.prefix_valid: Tensor | None = None
        self._expected = False

    def expect_prefill(self, places: int, valid: Tensor | None) -> None:
        """Announce the prefill's update and the padding among its places."""
        self.prefix, self.prefix_valid, self._expected = places, valid, True

    def expect_decode(self) -> None:
        """Announce an update by newly decoded tokens."""
        self._expected = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self._expected:
            raise HalfVError(
                "this cache was filled by an accelerated prefill: continue inside the same accelerate(...) block, "
                "or start again with an empty cache"
            )
        self._expected = False
        return super().update(key_states, value_states, *args, **kwargs)

    def reset(self) -> None:
        super().reset()
        self.prefix, self.prefix_valid = 0, None

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.prefix = min(self.prefix, self.get_seq_length())
        if self.prefix_valid is not None:
            self.prefix_valid = self.prefix_valid[:, : self.prefix]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.prefix_valid is not None:
            self.prefix_valid = self.prefix_valid.index_select(0, beam_idx.to(self.prefix_valid.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.prefix_valid is not None:
            self.prefix_valid = self.prefix_valid.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.prefix_valid is not None:
            self.prefix_valid = self.prefix_valid[indices]


class KeysFirst:
    """A cache that puts given keys and values in front of a layer's own, then hands everything to the real one.

    This lets the unmodified layer run on text rows alone while it attends to frozen visual tokens (Eq. 39). The order
    of keys does not matter, because position embeddings are in them already.
    """

    def __init__(self, real: Cache | None, keys: Tensor, values: Tensor) -> None:
        self.real, self.keys, self.values = real, keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        key_states = torch.cat([self.keys, key_states], dim=-2)
        value_states = torch.cat([self.values, value_states], dim=-2)
        if self.real is None:
            return key_states, value_states
        return self.real.update(key_states, value_states, layer_idx, *args, **kwargs)


def adopt(cache: Cache, layer_idx: int) -> ReducedLayer:
    """Replace an empty cache layer by a `ReducedLayer`, growing a lazily built cache first."""
    while len(cache.layers) <= layer_idx and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = ReducedLayer()
    cache.layers[layer_idx] = layer
    return layer


def reduced_layer(cache: Any, layer_idx: int) -> ReducedLayer | None:
    """The cache's layer if an accelerated prefill filled it."""
    layers = getattr(cache, "layers", [])
    layer = layers[layer_idx] if layer_idx < len(layers) else None
    return layer if isinstance(layer, ReducedLayer) and layer.get_seq_length() > 0 else None


def why_not(cache: Any) -> str | None:
    """What speaks against an accelerated prefill into this cache, as a sentence, or None.

    A cache layer class that HalfV does not know may quantize, slide or preallocate: only plain ones are taken over.
    """
    if cache is None:
        return None
    plain = "use the default cache: leave out past_key_values and cache_implementation"
    if not isinstance(cache, Cache):
        return f"past_key_values is a {type(cache).__name__}, which HalfV cannot reduce: {plain}"
    if cache.is_compileable or getattr(cache, "offloading", False):
        return f"a static or offloaded {type(cache).__name__} cannot hold fewer tokens in some layers: {plain}"
    kinds = [type(layer) for layer in cache.layers] + [getattr(cache, "layer_class_to_replicate", None)]
    other = {kind.__name__ for kind in kinds if kind is not None and kind not in (DynamicLayer, ReducedLayer)}
    if other:
        return f"cache layers of type {', '.join(sorted(other))} (sliding or quantized) cannot be reduced: {plain}"
    if cache.get_seq_length() > 0:
        return (
            f"the cache already holds {cache.get_seq_length()} tokens, and HalfV reduces a picture only at the start "
            "of a sequence: pass the whole conversation with an empty cache"
        )
    return None
