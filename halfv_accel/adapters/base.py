"""What HalfV must know of a model: where its decoder is, which ids are visual, and how attention projects.

All families of transformers >= 5.17 keep the decoder at `model.model.language_model` and use one
`apply_rotary_pos_emb(q, k, cos, sin)` per modeling file; what differs is stated in a family's own file. A class without
a file gets `Family` itself. Either way `adapters.verification` compares it with the model's own attention first.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halfv_accel.adapters.ranks import Ranks, ranks_of
from halfv_accel.adapters.structure import Picture, Structure, structure_of
from halfv_accel.adapters.towers import VisionTower
from halfv_accel.errors import HalfVError

Rotary = tuple[Tensor, Tensor]  # cos, sin: [B, S, head_dim]


class Family:
    """Adapter for one architecture.

    Class attributes
    ----------------
    architecture : str
        Name of the transformers class; empty where any class with the usual structure is meant.
    placeholders : dict
        Modality -> config field of the token id that stands for its features; a config may lack the field.
    pixels : dict
        Modality -> arguments of the core's forward that may bring its pixels.
    towers : dict
        Modality -> part of the core that encodes it, in the order in which the model encodes. Empty where `pictures`
        and `vision_tower` are not written.
    """

    architecture: ClassVar[str] = ""
    placeholders: ClassVar[dict[str, str]] = {"image": "image_token_id", "video": "video_token_id"}
    pixels: ClassVar[dict[str, tuple[str, ...]]] = {"image": ("pixel_values",), "video": ("pixel_values_videos",)}
    towers: ClassVar[dict[str, str]] = {}

    def __init__(self, model: Any) -> None:
        self.model = model
        self.core = model.model
        self.text = self.core.language_model
        self.layers: nn.ModuleList = self.text.layers
        # The classes' signatures: tools that offload weights replace `forward` on the instance.
        self._whole, self._signature = (
            inspect.signature(type(getattr(part, "_orig_mod", part)).forward)  # torch.compile's wrapper has none
            for part in (self.model, self.core)
        )

    @cached_property
    def ranks(self) -> Ranks | None:
        """The processes that share this model by tensor parallelism, or None."""
        return ranks_of(self.layers)

    def all_heads(self, layer: Any, part: Tensor, kind: str = "q") -> Tensor:
        """Entries of all heads, from those of this process's heads: [B, part of the heads, ...] -> [B, heads, ...].

        Everything that has a head dimension passes through here before it is averaged over heads or compared. Where
        the model is not divided, and where the projection gathers its heads itself, it is returned as it is.

        Parameters
        ----------
        kind : {"q", "k", "v"}
            Whose heads: a layer may have fewer of keys and values than of queries.
        """
        if self.ranks is None or part.shape[1] == heads_of(layer, kind):
            return part
        return self.ranks.joined(part)

    def core_arguments(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the core's forward by name, whether they came by position or by keyword."""
        return by_name(self._signature, args, kwargs)

    def arguments(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The same of the whole model's forward."""
        return by_name(self._whole, args, kwargs)

    def modalities(self, arguments: Mapping[str, Any]) -> set[str]:
        """Modalities whose features this forward carries, as pixels or, from `generate`, encoded already.

        Placeholder ids alone prove nothing: a model can generate them.
        """
        encoded = arguments.get("mm_encoder_outputs") or {}
        return {
            modality
            for modality, names in self.pixels.items()
            if encoded.get(modality) is not None or any(arguments.get(name) is not None for name in names)
        }

    def visual_positions(self, input_ids: Tensor, modalities: Iterable[str] = ("image", "video")) -> Tensor:
        """Where the visual tokens of these modalities are: [B, S] bool."""
        mask = torch.zeros_like(input_ids, dtype=torch.bool)
        for token_id in self.placeholder_ids(modalities):
            mask |= input_ids == token_id
        return mask

    @cached_property
    def encoder_arguments(self) -> set[str]:
        """Arguments of what encodes pictures and videos: `generate` takes these away from the core's forward."""
        encoders = [getattr(self.core, f"get_{modality}_features", None) for modality in self.pixels]
        names = {name for encoder in encoders if encoder is not None for name in inspect.signature(encoder).parameters}
        return names - {"kwargs"}

    def structure(self, input_ids: Tensor, arguments: Mapping[str, Any]) -> Structure:
        """Where this forward's visual tokens are in their pictures: see `structure_of`."""
        return structure_of(self, input_ids, arguments)

    def check_structure(self) -> None:
        """Refuse a class of which nobody has written how its pictures become tokens.

        Raises
        ------
        HalfVError
        """
        if not self.towers:
            raise HalfVError(self.unknown("where visual tokens are in their pictures"))

    def pictures(self, modality: str, arguments: Mapping[str, Any]) -> list[Picture]:
        """The pictures or videos of a forward, in the order of their features.

        Raises
        ------
        HalfVError
            If the arguments do not tell their sizes, or the family does not know.
        """
        raise HalfVError(self.unknown("where visual tokens are in their pictures"))

    def vision_tower(self, modality: str) -> VisionTower:
        """The tower that encodes a modality.

        Raises
        ------
        HalfVError
            If its layers are not of a known form.
        """
        raise HalfVError(self.unknown("signals of the vision tower"))

    def unknown(self, what: str) -> str:
        """The message of a refusal: a strategy asks for what this family cannot give."""
        return (
            f"a strategy of this plan needs {what}, which HalfV does not know for {type(self.model).__name__}: choose "
            "one that does without (`halfv methods` says what each needs), or write an adapter as CONTRIBUTING.md "
            "describes"
        )

    def placeholder_ids(self, modalities: Iterable[str] = ("image", "video")) -> list[int]:
        """Token ids that stand for features of these modalities."""
        ids = (getattr(self.model.config, self.placeholders[modality], None) for modality in modalities)
        return [token_id for token_id in ids if token_id is not None]

    def queries(self, layer: Any, states: Tensor, rotary: Rotary | None) -> Tensor:
        """Queries of one layer for some of its input states: [B, n, H] -> [B, heads, n, head_dim]."""
        return self._rotate(layer.self_attn, self._heads(layer, "q", self._normed_for(layer, states)), rotary)

    def keys(self, layer: Any, states: Tensor, rotary: Rotary | None) -> Tensor:
        """Keys, as `queries`: [B, kv_heads, n, head_dim]."""
        return self._rotate(layer.self_attn, self._heads(layer, "k", self._normed_for(layer, states)), rotary)

    def keys_and_values(self, layer: Any, states: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        """Keys, and values, which have no position embedding, in the same shape."""
        normed = self._normed_for(layer, states)
        keys = self._rotate(layer.self_attn, self._heads(layer, "k", normed), rotary)
        return keys, self._heads(layer, "v", normed)

    def unrotated_products(self, layer: Any, query: Tensor, states: Tensor) -> Tensor:
        """Products of one query a head [B, heads, 1, d] with the keys of some states [B, n, H], no position embedding.

        A key is a linear map of the normed state, and the query can pass through that map first: one vector of width H
        for each head, in place of all keys. Only the key's bias is missing, which adds the same number to all products
        of a head; softmax does not see it.

        Returns
        -------
        Tensor
            float32 [B, heads, n].
        """
        weight = self._plain_key_weight(layer)
        if weight is None:
            return products(query, self.keys(layer, states, None))
        normed = self._normed_for(layer, states)
        with torch.autocast(query.device.type, enabled=False):  # it would multiply in half precision again
            shared = weight.float().unflatten(0, (-1, query.shape[-1]))  # [kv_heads, d, H]
            folded = grouped(query, len(shared)) @ shared
            return folded.flatten(1, 2) @ normed.float().mT

    def normed(self, states: Tensor) -> Tensor:
        """States after the decoder's final norm."""
        return self.text.norm(beside(self.text.norm, states))

    def _normed_for(self, layer: Any, states: Tensor) -> Tensor:
        """States as a layer's attention sees them."""
        return layer.input_layernorm(beside(layer, states))

    def _heads(self, layer: Any, kind: str, normed: Tensor) -> Tensor:
        attention = layer.self_attn
        projected = getattr(attention, f"{kind}_proj")(normed)
        heads = projected.unflatten(-1, (-1, attention.head_dim))
        norm = getattr(attention, f"{kind}_norm", None)  # Qwen3 normalises each head's queries and keys
        return (heads if norm is None else norm(heads)).transpose(1, 2)

    def _plain_key_weight(self, layer: Any) -> Tensor | None:
        """The weight of a layer's key projection, if that is all there is between a normed state and a key."""
        projection = layer.self_attn.k_proj
        plain = type(projection) is nn.Linear and "forward" not in vars(projection)  # offloading replaces it
        hooked = projection._forward_hooks or projection._forward_pre_hooks
        normed = getattr(layer.self_attn, "k_norm", None) is not None
        other = any(getattr(type(self), name) is not getattr(Family, name) for name in ("keys", "_heads"))
        if not plain or hooked or normed or other:
            return None
        weight = projection.weight  # of another type where it is quantized
        usual = type(weight) is nn.Parameter and weight.is_floating_point() and not weight.is_meta
        return weight if usual else None

    def _rotate(self, attention: nn.Module, heads: Tensor, rotary: Rotary | None) -> Tensor:
        if rotary is None:
            return heads
        cos, sin = (table.to(heads.device) for table in rotary)
        none = heads[:, :0]  # the function turns queries and keys; here only one of them is wanted
        return sys.modules[type(attention).__module__].apply_rotary_pos_emb(heads, none, cos, sin)[0]


def by_name(signature: inspect.Signature, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a method by name, those of its ``**kwargs`` among the others."""
    bound = signature.bind_partial(None, *args, **kwargs).arguments
    return {**bound, **bound.pop("kwargs", {})}


def heads_of(layer: Any, kind: str) -> int:
    """Heads of a layer's queries, keys or values, in all processes together."""
    projection, size = getattr(layer.self_attn, f"{kind}_proj"), layer.self_attn.head_dim
    rows = getattr(projection, "out_features", None)  # transformers leaves the whole width there, as torch does
    return (projection.weight.shape[0] if rows is None else rows) // size


def grouped(query: Tensor, kv_heads: int) -> Tensor:
    """One query a head [B, heads, 1, d], by the keys that heads share: float32 [B, kv_heads, heads / kv_heads, d]."""
    return query[:, :, 0].unflatten(1, (kv_heads, -1)).float()


def products(query: Tensor, keys: Tensor) -> Tensor:
    """Products of one query a head [B, heads, 1, d] with keys [B, kv_heads, n, d]: float32 [B, heads, n]."""
    with torch.autocast(query.device.type, enabled=False):  # it would multiply in half precision again
        return (grouped(query, keys.shape[1]) @ keys.float().mT).flatten(1, 2)


def beside(module: nn.Module, states: Tensor) -> Tensor:
    """States on the device of a module's weights; offloaded ones fetch themselves to where the states are."""
    weight = next(module.parameters())
    return states if weight.is_meta else states.to(weight.device)
