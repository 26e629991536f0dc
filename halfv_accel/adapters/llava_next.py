"""LLaVA-NeXT: LLaVA with tiles. How many tokens a picture has depends on its size; row ends are visual tokens, too."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfv_accel.adapters.base import Family
from halfv_accel.adapters.structure import PART, Picture, size_of, square_parts, strategy_of
from halfv_accel.adapters.towers import PictureTower, VisionTower, unwrapped


class LlavaNext(Family):
    """Part 0 of a picture is the whole of it, the others are its crops, row by row.

    A row of the prompt's grid runs through all crops that stand side by side. It ends in a separator, which counts to
    the crop of the token before it.
    """

    architecture = "LlavaNextForConditionalGeneration"
    towers: ClassVar[dict[str, str]] = {"image": "vision_tower"}

    def pictures(self, modality: str, arguments: Mapping[str, Any]) -> list[Picture]:
        sizes = torch.as_tensor(size_of(self, "image_sizes", arguments)).cpu()
        strategy = strategy_of(self, arguments)
        return [self._picture(size, strategy) for size in sizes]

    def _picture(self, size: Tensor, strategy: str) -> Picture:
        """The model's own packing, unpadding included, done to places instead of features."""
        config, tower = self.core.config, self.core.vision_tower
        side = config.vision_config.image_size
        counted = sys.modules[type(unwrapped(self.core)).__module__].image_size_to_num_patches
        parts = counted(image_size=size, grid_pinpoints=config.image_grid_pinpoints, patch_size=side)
        table = square_parts(tower, parts, strategy)
        newline = torch.full_like(table[0, 0], -1)
        packed, _ = self.core.pack_image_features([table], size[None], strategy, image_newline=newline)
        found = packed[0].clone()
        shown = torch.arange(len(found)).masked_fill(found[:, PART] < 0, 0).cummax(0).values
        found[:, PART] = found[shown, PART]
        return Picture(found, parts * (side // config.vision_config.patch_size) ** 2)

    def vision_tower(self, modality: str) -> VisionTower:
        return PictureTower(self.core.vision_tower, self.core.multi_modal_projector)
