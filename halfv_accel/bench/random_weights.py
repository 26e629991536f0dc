"""Models of true size with random weights, made where they stay: speed can be measured without a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from halfv_accel.names import architecture


def build(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    side: int | None = None,
) -> PreTrainedModel:
    """A model that is known by its size, with random weights.

    Parameters
    ----------
    side : int, optional
        LLaVA-1.5 and mid: visual tokens along a picture's side, instead of the checkpoint's 24. Only the tower's
        position embeddings follow from it.

    Raises
    ------
    HalfVError
        If the name's size is not known.
    """
    config = architecture(name)
    if side is not None and config.model_type == "llava":
        config.vision_config.image_size = side * config.vision_config.patch_size
    return assemble(config, device, dtype, seed)


def assemble(
    config: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """A model with random weights as transformers initialises them."""
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
