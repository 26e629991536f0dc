"""The embedded models: two real architectures at 3 M parameters, trained by ``tiny_vlm.train`` on HalfV's scenes.

>>> import tiny_vlm
>>> model, processor = tiny_vlm.load("tiny-qwen2.5-vl")
>>> model.config.text_config.num_hidden_layers
10

They load without a network, and answer questions about scenes; about photographs they know nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

NAMES = ("tiny-qwen2.5-vl", "tiny-llava", "tiny-qwen2.5-vl-sparse")
CHECKPOINTS = Path(__file__).parent / "checkpoints"

__all__ = ["NAMES", "checkpoint", "load"]


def checkpoint(name: str) -> Path:
    """Folder of an embedded model, which ``from_pretrained`` opens.

    Raises
    ------
    ValueError
        If there is no embedded model of that name.
    FileNotFoundError
        If its checkpoint is not there.
    """
    if name not in NAMES:
        raise ValueError(f"no embedded model is called {name!r}: choose one of {', '.join(NAMES)}")
    folder = CHECKPOINTS / name
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the checkpoint of {name} is missing from {folder}: train it, make tiny-vlm")
    return folder


def load(
    name: str, device: str | torch.device = "cpu", dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load an embedded model and its processor, ready for inference.

    Parameters
    ----------
    name : str
        One of ``NAMES``.
    device : str or torch.device
    dtype : str or torch.dtype
        "auto" keeps what the checkpoint holds, bfloat16, unless a CPU does not multiply that natively: then float32.
    """
    folder = checkpoint(name)
    from halfv_accel import load_model

    return load_model(folder, device, dtype)
