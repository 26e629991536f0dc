"""LLaVA-NeXT: LLaVA with tiles. How many tokens a picture has depends on its size; row ends are visual tokens, too."""

from __future__ import annotations

from halfv_accel.adapters.base import Family


class LlavaNext(Family):
    architecture = "LlavaNextForConditionalGeneration"
