"""What HalfV must know of a model: where its decoder is, which ids are visual, and how attention projects.

All families of transformers >= 5.17 keep the decoder at `model.model.language_model` and use one
`apply_rotary_pos_emb(q, k, cos, sin)` per modeling file; what differs is stated in a family's own file.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halfv_accel.errors import HalfVError

Rotary = tuple[Tensor, Tensor]  # cos, sin: [B, S, head_dim]


class Family:
    """Adapter for one architecture.

    Class attributes
    ----------------
    architecture : str
        Name of the transformers class.
    attention_classes : tuple of str
        Attention classes whose projections `queries`, `keys` and `values` reproduce exactly.
    placeholder_fields : tuple of str
        Config fields that hold the token ids standing for visual features.
    """

    architecture: ClassVar[str]
    attention_classes: ClassVar[tuple[str, ...]]
    placeholder_fields: ClassVar[tuple[str, ...]]
    feature_arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_values_videos", "mm_encoder_outputs")

    def __init__(self, model: Any) -> None:
        self.model = model
        self.core = model.model
        self.text = self.core.language_model
        self.layers: nn.ModuleList = self.text.layers
        # The class's signature: tools that offload weights replace `forward` on the instance.
        self._signature = inspect.signature(type(self.core).forward)

    def check_attention(self) -> None:
        """Refuse a language model whose projections this family does not know (LLaVA may hold any)."""
        names = {type(layer.self_attn).__name__ for layer in self.layers}
        unknown = sorted(names - set(self.attention_classes))
        if unknown:
            raise HalfVError(
                f"{self.architecture} with {', '.join(unknown)} in its language model is not supported: "
                f"use a language model with {' or '.join(self.attention_classes)}"
            )

    def core_arguments(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the core's forward by name, whether they came by position or by keyword."""
        bound = self._signature.bind_partial(None, *args, **kwargs).arguments
        return {**bound, **bound.pop("kwargs", {})}

    def has_features(self, arguments: Mapping[str, Any]) -> bool:
        """Does this forward carry visual features? Placeholder ids alone prove nothing: a model can generate them."""
        encoded = arguments.get("mm_encoder_outputs") or {}
        pixels = (arguments.get(name) for name in self.feature_arguments if name != "mm_encoder_outputs")
        return any(value is not None for value in (*pixels, *encoded.values()))

    def visual_positions(self, input_ids: Tensor) -> Tensor:
        """Where the visual tokens are: [B, S] bool."""
        ids = (getattr(self.model.config, field, None) for field in self.placeholder_fields)
        mask = torch.zeros_like(input_ids, dtype=torch.bool)
        for token_id in ids:
            if token_id is not None:
                mask |= input_ids == token_id
        return mask

    def queries(self, layer: Any, states: Tensor, rotary: Rotary | None) -> Tensor:
        """Queries of one layer for some of its input states: [B, n, H] -> [B, heads, n, head_dim]."""
        return self._rotate(layer.self_attn, self._heads(layer, "q_proj", states), rotary)

    def keys(self, layer: Any, states: Tensor, rotary: Rotary | None) -> Tensor:
        """Keys, as `queries`: [B, kv_heads, n, head_dim]."""
        return self._rotate(layer.self_attn, self._heads(layer, "k_proj", states), rotary)

    def values(self, layer: Any, states: Tensor) -> Tensor:
        """Values, as `keys`, without position embedding."""
        return self._heads(layer, "v_proj", states)

    def _heads(self, layer: Any, projection: str, states: Tensor) -> Tensor:
        projected = getattr(layer.self_attn, projection)(layer.input_layernorm(states))
        return projected.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)

    def _rotate(self, attention: nn.Module, heads: Tensor, rotary: Rotary | None) -> Tensor:
        if rotary is None:
            return heads
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        return rotate(heads, heads, *rotary)[0]
