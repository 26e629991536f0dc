"""Model families. One file each; `family_of` finds the one that fits a model, or says which there are."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from halfv_accel.adapters.base import Family
from halfv_accel.adapters.llava import Llava
from halfv_accel.adapters.llava_next import LlavaNext
from halfv_accel.adapters.placement import check_whole_prompt
from halfv_accel.adapters.qwen2_5_vl import Qwen2_5VL
from halfv_accel.adapters.qwen2_vl import Qwen2VL
from halfv_accel.adapters.qwen3_vl import Qwen3VL
from halfv_accel.adapters.verification import check_projections
from halfv_accel.adapters.video_llava import VideoLlava
from halfv_accel.errors import HalfVError

FAMILIES: dict[str, type[Family]] = {
    family.architecture: family for family in (Llava, LlavaNext, Qwen2VL, Qwen2_5VL, Qwen3VL, VideoLlava)
}


def family_of(model: nn.Module) -> Family:
    """The adapter for a model. A class without one gets the usual adapter if its parts have the usual places.

    Of a PEFT model it is that of the model inside, which holds the adapter layers and runs in every call.

    Raises
    ------
    HalfVError
        If the model has other parts.
    """
    inner: Any = getattr(model, "get_base_model", None)
    if not isinstance(model, PreTrainedModel) and callable(inner):
        model = inner()
    whole = isinstance(model, PreTrainedModel)  # a wrapper passes attributes through, and its forward is another
    name = next((cls.__name__ for cls in type(model).__mro__ if cls.__name__ in FAMILIES), None)
    if not whole or (name is None and not could_fit(model)):
        raise HalfVError(
            f"{type(model).__name__} is not supported: give one of {', '.join(FAMILIES)}, "
            "itself and not wrapped or compiled"
        )
    return FAMILIES.get(name or "", Family)(model)


def could_fit(model: nn.Module) -> bool:
    """Does a model of any class have the parts that HalfV works on? Its weights may be on the meta device."""
    text = getattr(getattr(model, "model", None), "language_model", None)
    parts = all(hasattr(text, part) for part in ("layers", "norm", "rotary_emb"))
    return parts and getattr(getattr(model, "config", None), "image_token_id", None) is not None


__all__ = [
    "FAMILIES",
    "Family",
    "Llava",
    "LlavaNext",
    "Qwen2VL",
    "Qwen2_5VL",
    "Qwen3VL",
    "VideoLlava",
    "check_projections",
    "check_whole_prompt",
    "could_fit",
    "family_of",
]
