"""From pictures and a question to the inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, LlavaProcessor, ProcessorMixin, VideoLlavaProcessor

from halfv_accel.downsample import Downsample, shrink_pictures
from halfv_accel.errors import HalfVError
from halfv_accel.processors import NEEDS_TORCHVISION, VIDEO, PicturesOnly, brief

Turn = tuple[Sequence[Any], str] | tuple[Sequence[Any], str, Any]  # pictures, question, and perhaps a video

# What LLaVA-1.5 and Video-LLaVA were trained on, for their checkpoints from before chat templates.
VICUNA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'video') %}<{{ part['type'] }}>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def chat_inputs(
    processor: ProcessorMixin,
    images: Sequence[Any],
    question: str,
    device: torch.device | str = "cpu",
    downsample: Downsample | None = None,
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
    downsample : Downsample, optional
        Shrink the pictures first, as a plan's `downsample` says.

    Returns
    -------
    BatchFeature
        What ``model.generate`` takes, batch size 1.

    Raises
    ------
    HalfVError
        If the processor has no chat template, or cannot prepare or shrink these pictures, or prepare this question.
    """
    return batch_inputs(processor, [(images, question)], device, downsample)


def batch_inputs(
    processor: ProcessorMixin,
    turns: Sequence[Turn],
    device: torch.device | str = "cpu",
    downsample: Downsample | None = None,
) -> BatchFeature:
    """Several user turns, each a row of its own, padded on the left; else as `chat_inputs`.

    Parameters
    ----------
    turns : sequence of tuple
        (pictures, question), or (pictures, question, video): the path of a file, or its frames as PIL images.
    """
    template = None if getattr(processor, "chat_template", None) else _other_template(processor)
    for _, question, *videos in turns:
        _check_question(processor, question)
        if any(video is not None for video in videos):
            _check_watches(processor)
    settings: dict[str, Any] = dict(padding=True, padding_side="left") if len(turns) > 1 else {}
    if downsample is not None and not downsample.keeps_everything:
        turns, options = _shrunk_turns(processor, turns, downsample)
        settings |= {"images_kwargs": options} if options else {}
    try:
        inputs = processor.apply_chat_template(
            [[_user_turn(*turn)] for turn in turns],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,  # here, because transformers then adds no second start token to a template that writes one
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=settings,
        )
    except HalfVError:
        raise
    except Exception as error:  # processors check little: what they cannot take shows in many ways
        reason = brief(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {brief(error)}"
        raise HalfVError(
            f"the picture(s) or question could not be prepared ({reason}): give others, e.g. a cropped picture"
        ) from error
    return inputs.to(device)


def _shrunk_turns(
    processor: ProcessorMixin, turns: Sequence[Turn], downsample: Downsample
) -> tuple[list[Turn], dict[str, Any]]:
    """The turns with smaller pictures, and what the image processor is told for this call."""
    if any(video is not None for _, _, *videos in turns for video in videos):
        raise HalfVError("downsample shrinks pictures and no videos: leave the video out, or choose another method")
    shrunk = shrink_pictures(processor, [images for images, *_ in turns], downsample)
    questions = (question for _, question, *_ in turns)
    return list(zip(shrunk.rows, questions, strict=True)), shrunk.options


def _user_turn(images: Sequence[Any], question: str, video: Any = None) -> dict[str, Any]:
    pictures = [{"type": "image", "image": image} for image in images]
    films = [] if video is None else [{"type": "video", "video": video}]
    return {"role": "user", "content": [*pictures, *films, {"type": "text", "text": question}]}


def _check_question(processor: ProcessorMixin, question: str) -> None:
    """Refuse what stands for a picture, and what no tokenizer can read: a lone surrogate."""
    for token in _placeholders(processor):
        if token in question:
            raise HalfVError(f"the question holds {token}, which stands for a picture or a video: take it out")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise HalfVError(
            f"the question holds \\u{ord(question[error.start]):04x}, half of a character, which cannot be encoded as "
            "text: write that character again"
        ) from error


def _check_watches(processor: ProcessorMixin) -> None:
    if isinstance(processor, PicturesOnly):
        raise HalfVError(NEEDS_TORCHVISION)
    if VIDEO not in processor.get_attributes():
        raise HalfVError(f"{type(processor).__name__} takes no videos: give pictures, or a model that watches videos")


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
