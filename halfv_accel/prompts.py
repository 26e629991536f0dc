"""From pictures and a question to the inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from halfv_accel.errors import HalfVError
from halfv_accel.processors import brief


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
        If the processor has no chat template, or cannot prepare these pictures or this question.
    """
    if not getattr(processor, "chat_template", None):
        raise HalfVError(
            f"{type(processor).__name__} has no chat template: set processor.chat_template, or build the inputs"
        )
    for token in _placeholders(processor):
        if token in question:
            raise HalfVError(f"the question holds {token}, which stands for a picture or a video: take it out")
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    try:
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=list(images), text=[text], return_tensors="pt")
    except ValueError as error:
        raise HalfVError(
            f"the picture(s) or question could not be prepared ({brief(error)}): give others, e.g. a cropped picture"
        ) from error
    return inputs.to(device)


def _placeholders(processor: ProcessorMixin) -> set[str]:
    """Texts that the processor, its tokenizer or the model would take for visual tokens."""
    holders = (processor, getattr(processor, "tokenizer", None))
    tokens = {getattr(holder, name, None) for holder in holders for name in ("image_token", "video_token")}
    return {token for token in tokens if isinstance(token, str) and token}
