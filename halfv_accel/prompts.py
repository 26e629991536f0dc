"""From pictures and a question to the inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, LlavaProcessor, ProcessorMixin, VideoLlavaProcessor

from halfv_accel.errors import HalfVError
from halfv_accel.processors import brief

# What LLaVA-1.5 and Video-LLaVA were trained on, for their checkpoints from before chat templates.
VICUNA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def chat_inputs(
    processor: ProcessorMixin, images: Sequence[Any], question: str, device: torch.device | str = "cpu"
) -> BatchFeature:
    """One user turn, pictures first, through the model's own chat template.

    Parameters
    ----------
    processor : ProcessorMixin
        Of the model; it or its tokenizer must carry a chat template, unless it is LLaVA-1.5's or Video-LLaVA's.
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
    return batch_inputs(processor, [(images, question)], device)


def batch_inputs(
    processor: ProcessorMixin, turns: Sequence[tuple[Sequence[Any], str]], device: torch.device | str = "cpu"
) -> BatchFeature:
    """Several user turns of (pictures, question), each a row of its own, padded on the left; else as `chat_inputs`."""
    template = None if getattr(processor, "chat_template", None) else _other_template(processor)
    for token in _placeholders(processor):
        if any(token in question for _, question in turns):
            raise HalfVError(f"the question holds {token}, which stands for a picture or a video: take it out")
    try:
        inputs = processor.apply_chat_template(
            [[_user_turn(images, question)] for images, question in turns],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,  # here, because transformers then adds no second start token to a template that writes one
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=dict(padding=True, padding_side="left") if len(turns) > 1 else {},
        )
    except ValueError as error:
        raise HalfVError(
            f"the picture(s) or question could not be prepared ({brief(error)}): give others, e.g. a cropped picture"
        ) from error
    return inputs.to(device)


def _user_turn(images: Sequence[Any], question: str) -> dict[str, Any]:
    pictures = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}


def _other_template(processor: ProcessorMixin) -> str:
    """For a processor without chat template: its tokenizer's, if that knows pictures, or the family's own turn."""
    template = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    if isinstance(template, str) and any(token in template for token in _placeholders(processor)):
        return template
    if isinstance(processor, LlavaProcessor | VideoLlavaProcessor):
        return VICUNA_TEMPLATE
    raise HalfVError(
        f"{type(processor).__name__} has no chat template: set processor.chat_template, or build the inputs"
    )


def _placeholders(processor: ProcessorMixin) -> set[str]:
    """Texts that the processor, its tokenizer or the model would take for visual tokens."""
    holders = (processor, getattr(processor, "tokenizer", None))
    tokens = {getattr(holder, name, None) for holder in holders for name in ("image_token", "video_token")}
    return {token for token in tokens if isinstance(token, str) and token}
