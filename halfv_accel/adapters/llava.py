"""LLaVA-1.5: CLIP features in front of a Llama or Mistral decoder. One kind of visual token, no video."""

from __future__ import annotations

from halfv_accel.adapters.base import Family


class Llava(Family):
    architecture = "LlavaForConditionalGeneration"
