"""Qwen2.5-VL: pictures and videos are visual tokens; multimodal positions are composed before the layers see them."""

from __future__ import annotations

from halfv_accel.adapters.qwen import Qwen


class Qwen2_5VL(Qwen):
    architecture = "Qwen2_5_VLForConditionalGeneration"
