"""From pictures and a question to the inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from halfv_accel.errors import HalfVError


def chat_inputs(
    processor: ProcessorMixin, images: Sequence[Any], question: str, device: torch.device | str = "cpu"
) -> BatchFeature:
    """One user turn, pictures first, through the model's own chat template.

    Parameters
    ----------
    processor : ProcessorMixin
        Of the model; it must carry a chat template.
    images : sequence of PIL.Image
        In the order in which the question refers to them.
    question : str
        Asked after the pictures.
    device : torch.device or str
        Where the tensors go.

    Returns
    -------
    BatchFeature
        What ``model.generate`` takes, batch size 1.

    Raises
    ------
    HalfVError
        If the processor has no chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise HalfVError(
            f"{type(processor).__name__} has no chat template: set processor.chat_template, or build the inputs"
        )
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=list(images), text=[text], return_tensors="pt").to(device)
