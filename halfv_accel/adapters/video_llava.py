"""Video-LLaVA: LLaVA with a second tower for videos; a video's frames bring their CLS tokens along."""

from __future__ import annotations

from typing import ClassVar

from halfv_accel.adapters.base import Family


class VideoLlava(Family):
    architecture = "VideoLlavaForConditionalGeneration"
    # In transformers 5.17, and still in its processor, pictures have a name of their own.
    pixels: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("pixel_values", "pixel_values_images"),
        "video": ("pixel_values_videos",),
    }
