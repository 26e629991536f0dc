"""How signals are taken from a vision tower: which of its modules are listened to, and what is made of it.

Queries and keys are what the layer's own projections made of the layer's own input: no layer runs twice, and no tower
is switched to another attention. What is made of them is laid out by patches or, where patches are merged, by tokens:
parts in order, rows in order, from left to right.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from halfv_accel.adapters.ranks import ranks_of
from halfv_accel.adapters.structure import has_cls
from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Signal

ENTRIES = 2**24  # of a chunk of attention, in float32: 64 MiB
Wanted = tuple[Signal, int]  # a signal, and the layer it is taken from
Heard = tuple[nn.Module, Literal["input", "arguments", "output"]]  # a module, and what of its calls


class VisionTower(Protocol):
    """One tower, in front of its projector."""

    module: nn.Module

    def layer(self, asked: int) -> int:
        """The layer that a signal is taken from, if it is asked for of this one."""
        ...

    def parts(self, wanted: Wanted) -> dict[str, Heard]:
        """What a signal is made of, each under a name."""
        ...

    def signal(self, wanted: Wanted, taken: Mapping[str, Any]) -> Tensor:
        """What one call of the tower says, by place in its output.

        Parameters
        ----------
        taken : mapping
            What was heard, by the names of `parts`; "called" are the tower's own arguments, "states" is the shape of
            its last hidden states.

        Returns
        -------
        Tensor
            "attention": [n, heads] float32, "keys": [n, heads, d], "features": [n, width]; see `View.vision`.
        """
        ...


class PictureTower:
    """A tower of pictures of one size, as CLIP and SigLIP: states are [pictures, patches, width].

    With a CLS token, "attention" is its own row. "default" and "full" features are of patches alone.
    """

    def __init__(self, tower: Any, projector: nn.Module) -> None:
        self.module, self.projector, self.has_cls = tower, projector, has_cls(tower)
        stacks = (module for name, module in tower.named_modules() if name.rpartition(".")[2] == "layers")
        self.attentions = [getattr(layer, "self_attn", layer) for layer in next(stacks, ())]
        check_tower(self, ("q_proj", "k_proj", "head_dim"))

    def layer(self, asked: int) -> int:
        return in_range(asked, len(self.attentions))

    def parts(self, wanted: Wanted) -> dict[str, Heard]:
        signal, layer = wanted
        if signal == "features":
            return {"features": (self.projector, "input")}
        attention = self.attentions[layer]
        keys: dict[str, Heard] = {f"keys {layer}": (attention.k_proj, "output")}
        return keys if signal == "keys" else {**keys, f"queries {layer}": (attention.q_proj, "output")}

    def signal(self, wanted: Wanted, taken: Mapping[str, Any]) -> Tensor:
        signal, layer = wanted
        patches = taken["states"][1] - self.has_cls
        if signal == "features":
            # Negative padding takes CLS away; without CLS, "default" has left out the first patch.
            features = taken["features"]
            return nn.functional.pad(features, (0, 0, patches - features.shape[1], 0)).flatten(0, 1)
        keys = self._heads(taken[f"keys {layer}"], layer)
        if signal == "keys":
            return keys[:, -patches:].flatten(0, 1)
        queries = self._heads(taken[f"queries {layer}"], layer)
        if not self.has_cls:
            bounds = range(0, keys.shape[0] * patches + 1, patches)
            return received(queries.flatten(0, 1), keys.flatten(0, 1), bounds)
        with torch.autocast(keys.device.type, enabled=False):
            logits = queries[:, :1].float().transpose(1, 2) @ keys.float().permute(0, 2, 3, 1)
        attention = logits.mul(keys.shape[-1] ** -0.5).softmax(-1)[:, :, 0, 1:]  # [pictures, heads, patches]
        return attention.transpose(1, 2).flatten(0, 1)

    def _heads(self, projected: Tensor, layer: int) -> Tensor:
        return projected.unflatten(-1, (-1, self.attentions[layer].head_dim))  # [pictures, patches, heads, d]


class PackedTower:
    """A tower of pictures of any size one after the other, as Qwen's: states are [patches, width], and no CLS token.

    Its "attention" is what a patch receives, with the layer's rotary position embeddings, from the queries of its
    frame. "keys" are without them, since an average over patches of several positions turned means little. Qwen2.5-VL
    has layers that see windows only; its attention and keys are those of the nearest layer with full attention at or
    before the layer asked for, or of the first one after it. Patches lie in the order of windows there, and are put
    back. Everything is averaged over the patches of a merged token.
    """

    def __init__(self, tower: Any, merger: Any) -> None:
        self.module, self.merger = tower, merger
        self.attentions = [getattr(block, "attn", block) for block in getattr(tower, "blocks", ())]
        self.full = sorted(getattr(tower, "fullatt_block_indexes", range(len(self.attentions))))
        check_tower(self, ("qkv", "num_heads"))

    def layer(self, asked: int) -> int:
        layer = in_range(asked, len(self.attentions))
        return max((index for index in self.full if index <= layer), default=min(self.full, default=layer))

    def parts(self, wanted: Wanted) -> dict[str, Heard]:
        signal, layer = wanted
        if signal == "features":
            return {"features": (self.merger, "input")}
        attention = self.attentions[layer]
        return {f"qkv {layer}": (attention.qkv, "output"), f"given {layer}": (attention, "arguments")}

    def signal(self, wanted: Wanted, taken: Mapping[str, Any]) -> Tensor:
        signal, layer = wanted
        if signal == "features":
            return self._by_token(taken["features"], taken)
        attention = self.attentions[layer]
        queries, keys, _ = taken[f"qkv {layer}"].unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        if signal == "keys":
            return self._by_token(keys, taken)
        given = taken[f"given {layer}"]
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
        queries, keys = rotate(queries, keys, *given["position_embeddings"])
        return self._by_token(received(queries, keys, given["cu_seqlens"].tolist()), taken)

    def _by_token(self, patches: Tensor, taken: Mapping[str, Any]) -> Tensor:
        """The mean over the patches of each token, tokens in the order of the prompt."""
        merged = patches.unflatten(0, (-1, self.module.spatial_merge_size**2)).float().mean(1).to(patches.dtype)
        order = self._window_order(taken["called"])
        return merged if order is None else merged[order.to(merged.device).argsort()]

    def _window_order(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """The order in which the layers see the tokens of the prompt: Qwen2.5-VL sorts them by windows."""
        tower = self.module
        ordered = getattr(sys.modules[type(unwrapped(tower)).__module__], "get_vision_window_index", None)
        if ordered is None or not hasattr(tower, "window_size"):
            return None
        sizes = dict(
            spatial_merge_size=tower.spatial_merge_size, window_size=tower.window_size, patch_size=tower.patch_size
        )
        return ordered(arguments["grid_thw"], **sizes, kwargs=dict(arguments))[0]


def received(queries: Tensor, keys: Tensor, bounds: Sequence[int]) -> Tensor:
    """Attention that each key receives, mean over the queries between the same bounds, in chunks of queries.

    Parameters
    ----------
    queries, keys : (n, heads, d) Tensor
    bounds : sequence of int
        Where pictures or frames begin, and n. None sees another.

    Returns
    -------
    Tensor
        float32 [n, heads].
    """
    means = [keys.new_empty(0, keys.shape[1], dtype=torch.float32)]
    with torch.autocast(keys.device.type, enabled=False):  # it would multiply in half precision again
        for start, end in pairwise(bounds):
            across = keys[start:end].float().permute(1, 2, 0)  # [heads, d, n]
            rows = max(1, ENTRIES // max(1, across.shape[0] * across.shape[2]))
            total = across.new_zeros(across.shape[0], across.shape[2])
            for chunk in queries[start:end].split(rows):
                logits = chunk.float().transpose(0, 1) @ across
                total += logits.mul_(queries.shape[-1] ** -0.5).softmax(-1).sum(1)
            means.append(total.T / max(1, end - start))
    return torch.cat(means)


def check_tower(tower: Any, parts: Sequence[str]) -> None:
    """Refuse a tower whose layers are of another form, or divided among processes.

    Raises
    ------
    HalfVError
    """
    name = type(unwrapped(tower.module)).__name__
    if not tower.attentions or not all(hasattr(attention, part) for attention in tower.attentions for part in parts):
        raise HalfVError(
            f"a strategy of this plan needs signals of the vision tower, and the layers of {name} are not of a form "
            "that HalfV knows: choose one that does without (`halfv methods` says what each needs)"
        )
    if ranks_of(tower.module) is not None:
        raise HalfVError(
            f"a strategy of this plan needs signals of the vision tower, and {name} is divided among processes: load "
            "the model without a plan for its tower, or choose a strategy that does without"
        )


def in_range(asked: int, layers: int) -> int:
    """The index from 0 of a layer that may be counted from the end.

    Raises
    ------
    HalfVError
    """
    if not -layers <= asked < layers:
        raise HalfVError(
            f"vision_layer is {asked}, and the vision tower has {layers} layers: choose one from {-layers} to "
            f"{layers - 1}"
        )
    return asked % layers


def unwrapped(module: Any) -> nn.Module:
    """The module inside torch.compile's wrapper."""
    return getattr(module, "_orig_mod", module)
