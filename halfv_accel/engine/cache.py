"""The key/value cache of layers that hold fewer tokens than the prompt has.

transformers asks one layer, the first, how long a sequence is, and counts positions and masks from the answer. So a
reduced layer answers with the length that the caller knows, and holds fewer keys; which of its places are padding it
remembers itself. Layer 0 is no exception: should a method shorten it, too, `generate` would go on counting right.

Once one layer of a cache is reduced, all its layers are of this kind: then the first of them, and not one in the
middle, refuses what may not be done to the cache, before anything has changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from halfv_accel.engine.rows import Rows
from halfv_accel.errors import HalfVError


class ReducedLayer(DynamicLayer):
    """A `DynamicLayer` that knows its prefix: all places up to the last accelerated prefill's, padding included.

    It takes updates only from an accelerated forward. Without HalfV's hooks the model would build a mask for the
    prompt's length; such a mask has the wrong width, or, worse, is None and hides nothing.

    Attributes
    ----------
    prefix : int
        Places of the prefix.
    prefix_valid : (B, prefix) bool Tensor or None
        Those that are not padding; None when all are.
    history : tuple of int
        The layouts of all accelerated prefills into this layer. Layers with the same one hold the same tokens.
    missing : int
        Tokens of the prompt that have no place here.
    intact : bool
        All tokens are here, in the caller's order.
    open : bool
        An accelerated forward is under way.
    """

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.prefix = self.missing = 0
        self.history: tuple[int, ...] = ()
        self.prefix_valid: Tensor | None = None
        self.intact = True
        self.open = False

    @property
    def places(self) -> int:
        """Keys held."""
        return super().get_seq_length()

    @property
    def tail(self) -> int:
        """Keys behind the prefix: tokens that every layer holds."""
        return self.places - self.prefix

    def get_seq_length(self) -> int:
        return self.places + self.missing if self.places else 0

    def past_valid(self, real: Tensor | None) -> Tensor | None:
        """Places that are not padding: [B, places] bool, or None when all are.

        `real` says the same of the sequence that the caller knows, [B, get_seq_length()].
        """
        if not self.places or (real is None and self.prefix_valid is None):
            return None
        if self.prefix_valid is not None:
            valid = self.prefix_valid
        else:
            valid = torch.ones(self.keys.shape[0], self.prefix, dtype=torch.bool, device=self.keys.device)
        if real is None:
            tail = torch.ones(self.keys.shape[0], self.tail, dtype=torch.bool, device=valid.device)
        else:
            tail = real[:, real.shape[1] - self.tail :].to(valid.device)
        return torch.cat([valid, tail], dim=1)

    def seal(self, valid: Tensor | None) -> None:
        """Make all that is held the prefix; `valid` [B, places] marks padding, None means there is none."""
        self.prefix, self.prefix_valid = self.places, valid

    def expect(self, rows: Rows, layout: int, tokens: int, past_valid: Tensor | None) -> None:
        """Announce a prefill's update: these rows, of its n-th layout, stand for `tokens` new ones of the prompt."""
        past, places = self.places, rows.index.shape[1]
        self.history += (layout,)
        if past == 0:
            self.prefix_valid = rows.valid
        elif past_valid is not None or rows.valid is not None:
            if past_valid is None:
                past_valid = torch.ones(len(rows.index), past, dtype=torch.bool, device=rows.index.device)
            self.prefix_valid = torch.cat([past_valid.to(rows.index.device), rows.present()], dim=1)
        self.prefix, self.missing, self.intact = past + places, self.missing + tokens - places, False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.places and not self.open:
            raise HalfVError(
                "this cache was filled by an accelerated prefill: continue inside the same accelerate(...) block, "
                "or start again with an empty cache"
            )
        if self.places:
            return super().update(key_states, value_states, *args, **kwargs)
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states  # joined with nothing they would be copied
        return self.keys, self.values

    def reset(self) -> None:
        super().reset()
        self.keys = self.values = None  # older releases only fill them with zeros
        self.is_initialized = False
        self.prefix = self.missing = 0
        self.history, self.prefix_valid, self.intact = (), None, True

    def crop(self, tokens_to_remove: int) -> None:
        if abs(tokens_to_remove) > self.tail:
            raise HalfVError(
                f"crop({tokens_to_remove}) reaches into a prompt whose visual tokens were reduced: crop at most "
                f"{self.tail} tokens, or start again with an empty cache"
            )
        super().crop(tokens_to_remove)

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
        key_states = torch.cat([self.keys.to(key_states.device), key_states], dim=-2)
        value_states = torch.cat([self.values.to(value_states.device), value_states], dim=-2)
        if self.real is None:
            return key_states, value_states
        return self.real.update(key_states, value_states, layer_idx, *args, **kwargs)


def adopt(cache: Cache, depth: int, done: int, valid: Tensor | None) -> None:
    """Make all layers of a cache `ReducedLayer`s, with what they hold, in the middle of an accelerated forward.

    Parameters
    ----------
    depth : int
        Decoder layers; a lazily built cache is grown to them.
    done : int
        Layers that have stored this forward's tokens already: those belong to their prefix.
    valid : (B, get_seq_length()) bool Tensor or None
        Tokens of the caller's sequence that are not padding; None when all are.
    """
    while len(cache.layers) < depth and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    for index, plain in enumerate(cache.layers):
        if not isinstance(plain, ReducedLayer):
            layer = cache.layers[index] = ReducedLayer()
            layer.__dict__.update(plain.__dict__)
    for layer in cache.layers[:done]:
        layer.seal(layer.past_valid(valid))
    set_open(cache, True)


def set_open(cache: Any, is_open: bool) -> None:
    """Let reduced layers take updates while an accelerated forward is under way, or no longer."""
    for layer in getattr(cache, "layers", []):
        if isinstance(layer, ReducedLayer):
            layer.open = is_open


def broken_off(cache: Any) -> bool:
    """Did a forward into a reduced cache fail in the middle, so that its layers know different conversations?"""
    layers = [layer for layer in getattr(cache, "layers", []) if isinstance(layer, ReducedLayer)]
    return len({layer.get_seq_length() for layer in layers}) > 1


def reduced_layer(cache: Any, layer_idx: int) -> ReducedLayer | None:
    """The cache's layer if an accelerated prefill left it with other tokens than the caller knows."""
    layers = getattr(cache, "layers", [])
    layer = layers[layer_idx] if layer_idx < len(layers) else None
    return layer if isinstance(layer, ReducedLayer) and layer.places and not layer.intact else None


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
    return None
