"""Video-LLaVA: LLaVA with a second tower for videos; a video's frames bring their CLS tokens along."""

from __future__ import annotations

from halfv_accel.adapters.base import Family


class VideoLlava(Family):
    architecture = "VideoLlavaForConditionalGeneration"
