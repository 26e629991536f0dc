"""Qwen2-VL: pictures and videos are visual tokens; multimodal positions are composed before the layers see them."""

from __future__ import annotations

from halfv_accel.adapters.qwen import Qwen


class Qwen2VL(Qwen):
    architecture = "Qwen2VLForConditionalGeneration"
