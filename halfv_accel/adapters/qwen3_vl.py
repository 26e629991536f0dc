"""Qwen3-VL: timestamps between the frames of a video are text, queries and keys are normed, and DeepStack adds visual
features to the states between the first layers.

DeepStack finds its tokens in the full-length states that the engine keeps there. What it adds to dropped tokens nobody
sees. Frozen tokens get it, too: a plan that freezes that early stops the layers from changing them, not DeepStack.
"""

from __future__ import annotations

from halfv_accel.adapters.qwen import Qwen


class Qwen3VL(Qwen):
    architecture = "Qwen3VLForConditionalGeneration"
