"""Video-LLaVA: LLaVA with a second tower for videos; a video's frames bring their CLS tokens along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from halfv_accel.adapters.base import Family
from halfv_accel.adapters.structure import Picture, count_of, size_of, square_parts, strategy_of
from halfv_accel.adapters.towers import PictureTower, VisionTower


class VideoLlava(Family):
    architecture = "VideoLlavaForConditionalGeneration"
    # In transformers 5.17, and still in its processor, pictures have a name of their own.
    pixels: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("pixel_values", "pixel_values_images"),
        "video": ("pixel_values_videos",),
    }
    towers: ClassVar[dict[str, str]] = {"image": "image_tower", "video": "video_tower"}

    def pictures(self, modality: str, arguments: Mapping[str, Any]) -> list[Picture]:
        tower, count, frames, strategy = getattr(self.core, self.towers[modality]), 0, 1, "full"
        if modality == "image":
            count, strategy = count_of(self, modality, arguments), strategy_of(self, arguments)
        else:
            count, frames = size_of(self, "pixel_values_videos", arguments).shape[:2]
        table = square_parts(tower, frames, strategy).flatten(0, 1)
        patches = (tower.config.image_size // tower.config.patch_size) ** 2
        return [Picture(table, frames * patches)] * count

    def vision_tower(self, modality: str) -> VisionTower:
        return PictureTower(getattr(self.core, self.towers[modality]), self.core.multi_modal_projector)
