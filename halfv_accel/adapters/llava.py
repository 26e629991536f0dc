"""LLaVA-1.5: CLIP features in front of a Llama or Mistral decoder. One kind of visual token, no video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from halfv_accel.adapters.base import Family
from halfv_accel.adapters.structure import Picture, count_of, raster, square_parts, strategy_of
from halfv_accel.adapters.towers import PictureTower, VisionTower


class Llava(Family):
    architecture = "LlavaForConditionalGeneration"
    towers: ClassVar[dict[str, str]] = {"image": "vision_tower"}

    def pictures(self, modality: str, arguments: Mapping[str, Any]) -> list[Picture]:
        """Of one size, unless the tower takes any (Pixtral) and `image_sizes` tell them."""
        tower, sizes = self.core.vision_tower, arguments.get("image_sizes")
        if sizes is not None:
            grids = (torch.as_tensor(sizes) // tower.patch_size).tolist()
            tables = [raster(1, rows, columns)[0] for rows, columns in grids]
            return [Picture(table, len(table)) for table in tables]
        table = square_parts(tower, 1, strategy_of(self, arguments))[0]
        patches = (tower.config.image_size // tower.config.patch_size) ** 2
        return [Picture(table, patches)] * count_of(self, modality, arguments)

    def vision_tower(self, modality: str) -> VisionTower:
        return PictureTower(self.core.vision_tower, self.core.multi_modal_projector)
