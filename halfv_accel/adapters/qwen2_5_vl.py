"""Qwen2.5-VL: pictures and videos are visual tokens; multimodal positions are composed before the layers see them."""

from __future__ import annotations

from halfv_accel.adapters.base import Family


class Qwen2_5VL(Family):
    architecture = "Qwen2_5_VLForConditionalGeneration"
