"""Make the visual tokens invisible from a decoder layer on: a slow, plain reference for what removing them all does.

It shares nothing with the accelerator. The sequence keeps its full length, no cache is used, and from the given layer
on a 4-D mask keeps every token that is not visual from attending to one that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def invisible_visual_tokens(model: PreTrainedModel, from_layer: int) -> Iterator[None]:
    """Within the context, text sees no visual token in decoder layers ``from_layer`` and later.

    Run the model with ``use_cache=False`` inside, also in ``generate``.

    Raises
    ------
    ValueError
        If there is no such layer, or the attention implementation takes no 4-D mask.
    """
    layers = model.model.language_model.layers
    if not 0 <= from_layer <= len(layers):
        raise ValueError(f"from_layer is {from_layer}: this model has decoder layers 0 to {len(layers) - 1}")
    kind = model.config.text_config._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise ValueError(f"attention {kind!r} takes no 4-D mask: load the model with attn_implementation='sdpa'")
    view = _Blindfold(model.config.image_token_id)
    with ExitStack() as installed:
        installed.callback(model.model.register_forward_pre_hook(view.locate, with_kwargs=True).remove)
        for layer in layers[from_layer:]:
            installed.callback(layer.register_forward_pre_hook(view.cover, with_kwargs=True).remove)
        yield


class _Blindfold:
    def __init__(self, image_token: int) -> None:
        self.image_token = image_token
        self.visual: Tensor | None = None  # [B, S]

    def locate(self, core: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or kwargs.get("past_key_values") is not None:
            raise ValueError("the reference without visual tokens needs whole sequences of ids: pass use_cache=False")
        self.visual = ids == self.image_token

    def cover(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        if self.visual is None:
            raise RuntimeError("a decoder layer ran before its model: call the whole model inside the context")
        hidden = ~self.visual[:, None, :, None] & self.visual[:, None, None, :]  # [B, 1, query, key]
        allowed = _additive(kwargs.get("attention_mask"), states)
        return args, {**kwargs, "attention_mask": allowed.masked_fill(hidden, torch.finfo(states.dtype).min)}


def _additive(mask: Tensor | None, states: Tensor) -> Tensor:
    """A layer's mask in its additive form [B, 1, S, S]; None stands for plain causal attention."""
    if mask is not None and mask.dtype != torch.bool:
        return mask.to(states.dtype)
    length = states.shape[1]
    if mask is None:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=states.device).tril()
    return torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, torch.finfo(states.dtype).min)
