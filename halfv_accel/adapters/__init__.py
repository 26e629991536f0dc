"""Model families. One file each; `family_of` finds the one that fits a model, or says which there are."""

from __future__ import annotations

from torch import nn

from halfv_accel.adapters.base import Family
from halfv_accel.adapters.llava import Llava
from halfv_accel.adapters.qwen2_5_vl import Qwen2_5VL
from halfv_accel.errors import HalfVError

FAMILIES: dict[str, type[Family]] = {family.architecture: family for family in (Llava, Qwen2_5VL)}


def family_of(model: nn.Module) -> Family:
    """The adapter for a model.

    Raises
    ------
    HalfVError
        If the model's class, or the attention class of its language model, is not supported.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in FAMILIES:
            family = FAMILIES[cls.__name__](model)
            family.check_attention()
            return family
    raise HalfVError(
        f"{type(model).__name__} is not supported: give one of {', '.join(FAMILIES)}, "
        "itself and not wrapped or compiled"
    )


__all__ = ["FAMILIES", "Family", "Llava", "Qwen2_5VL", "family_of"]
