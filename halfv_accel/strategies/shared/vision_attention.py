"""The tower's attention as a score, and what the strategies that go by it have in common."""

from __future__ import annotations

from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Sizes, View


def attention_scores(view: View, layer: int) -> Tensor:
    """Attention of the tower's layer to each visual token, mean over heads: [B, V] float32, 0 on padding."""
    return view.vision("attention", layer).float().mean(dim=1)


def attention_flops(sizes: Sizes) -> int:
    """Operations behind `attention_scores`; none where nothing is known of the tower."""
    return sizes.tower.attention_flops(sizes.candidates) if sizes.tower else 0


def check_vision_layer(layer: object, name: str = "vision_layer") -> None:
    """Refuse what cannot be a layer of the tower.

    Raises
    ------
    HalfVError
    """
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise HalfVError(f"{name} is {layer!r}: give the number of a layer of the vision tower, such as -2")


def check_at_least(value: object, least: int, name: str) -> None:
    """Refuse what is no whole number of at least so much.

    Raises
    ------
    HalfVError
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise HalfVError(f"{name} is {value!r}: give a whole number of at least {least}")
