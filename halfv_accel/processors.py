"""The processor of a model: the checkpoint's own, or, where torchvision is missing, its half for pictures.

The processors of families that watch videos cannot be built without torchvision, because their video half needs it.
Pictures need only PIL, so the class that the checkpoint names is then built without that half and refuses videos.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from halfv_accel.errors import HalfVError

VIDEO = "video_processor"  # what transformers calls the video half
NEEDS_TORCHVISION = "videos need torchvision, which is missing: pip install torchvision, or give pictures"


def load_processor(source: str, config: Any, **options: Any) -> Any:
    """Load the processor of a checkpoint.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the model; it says which class of processor belongs to it.
    options
        For every `from_pretrained`.

    Raises
    ------
    HalfVError
        If there is none, or if it needs what is not installed.
    """
    try:
        return AutoProcessor.from_pretrained(source, **options)
    except Exception as error:
        reason = error
    if not is_torchvision_available() and _has_video_half(config):
        try:
            return _for_pictures(PROCESSOR_MAPPING[type(config)]).from_pretrained(source, **options)
        except Exception as error:
            reason = error
    advice = "save the processor next to the model"
    if "torchvision" in str(reason).lower():
        advice = "install torchvision, with: pip install torchvision"
    raise HalfVError(f"{source} has no processor that can be loaded ({brief(reason)}): {advice}") from reason


class PicturesOnly(ProcessorMixin):
    """Stands between a processor class and `ProcessorMixin`, and takes its video half out."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*(part for part in parts if part is not None), **settings)

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **settings: Any) -> Any:
        if videos is not None:
            raise HalfVError(NEEDS_TORCHVISION)
        return super().__call__(images=images, text=text, **settings)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != VIDEO]

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **settings: Any) -> Any:
        """By name, because the class still counts the video half among its positions."""
        parts = dict(zip(cls.get_attributes(), args, strict=True))
        return super().from_args_and_dict((), processor_dict, **parts, **settings)


def _has_video_half(config: Any) -> bool:
    try:
        return VIDEO in PROCESSOR_MAPPING[type(config)].get_attributes()
    except (KeyError, ImportError):  # no processor belongs to this model, or torchvision is needed to import it
        return False


def _for_pictures(stock: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The stock class without its video half, of the same name, so that saving it writes what any machine can load."""
    return type(stock.__name__, (stock, PicturesOnly), {})


def brief(error: BaseException) -> str:
    """The first sentence of a message, cut between words to a length that fits a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    first = re.split(r"(?<=[.!?])\s", text)[0].rstrip(".:")
    return textwrap.shorten(first, 160, placeholder=" ...")
