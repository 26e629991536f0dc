"""What the Qwen families have in common: one tower for pictures and videos of any size, patches merged two by two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from halfv_accel.adapters.base import Family
from halfv_accel.adapters.structure import Picture, raster, size_of
from halfv_accel.adapters.towers import PackedTower, VisionTower


class Qwen(Family):
    """The parts of a video are its temporal patches; what stands between them is text."""

    towers: ClassVar[dict[str, str]] = {"image": "visual", "video": "visual"}
    grids: ClassVar[dict[str, str]] = {"image": "image_grid_thw", "video": "video_grid_thw"}

    def pictures(self, modality: str, arguments: Mapping[str, Any]) -> list[Picture]:
        merged = self.core.visual.spatial_merge_size
        tables = [
            raster(frames, rows // merged, columns // merged).flatten(0, 1)
            for frames, rows, columns in size_of(self, self.grids[modality], arguments).tolist()
        ]
        return [Picture(table, len(table)) for table in tables]

    def vision_tower(self, modality: str) -> VisionTower:
        tower = getattr(self.core, self.towers[modality])
        return PackedTower(tower, getattr(tower, "merger", None))
