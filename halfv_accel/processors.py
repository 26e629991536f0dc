"""The processor of a model: the checkpoint's own, or, where torchvision is missing, one for pictures only.

Qwen2.5-VL's own processor reads videos too, and cannot even be built without torchvision. Its pictures need only PIL.
PaddleOCR-VL's processor treats pictures and their placeholders by the same rules and knows no videos, so it takes over.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PaddleOCRVLProcessor, ProcessorMixin
from transformers.utils import is_torchvision_available

from halfv_accel.adapters import Qwen2_5VL
from halfv_accel.errors import HalfVError


def load_processor(source: str, config: Any, architecture: str, **options: Any) -> Any:
    """Load the processor of a checkpoint.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the model; it says which tokens stand for pictures.
    architecture : str
        transformers class of the model.
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
    if architecture == Qwen2_5VL.architecture and not is_torchvision_available():
        try:
            return _for_pictures(source, config, **options)
        except Exception as error:
            reason = error
    advice = "save the processor next to the model"
    if "torchvision" in str(reason).lower():
        advice = "install torchvision, with: pip install torchvision"
    raise HalfVError(f"{source} has no processor that can be loaded ({brief(reason)}): {advice}") from reason


def _for_pictures(source: str, config: Any, **options: Any) -> ProcessorMixin:
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    for kind in ("image", "video"):  # names that the hub's tokenizers do not have
        token_id = getattr(config, f"{kind}_token_id")
        setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(token_id))
        setattr(tokenizer, f"{kind}_token_id", token_id)
    images = AutoImageProcessor.from_pretrained(source, **options)
    template = ProcessorMixin.get_processor_dict(source, **options)[0].get("chat_template") or tokenizer.chat_template
    return PaddleOCRVLProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)


def brief(error: BaseException) -> str:
    """The first sentence of a message, cut between words to a length that fits a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    first = re.split(r"(?<=[.!?])\s", text)[0].rstrip(".:")
    return textwrap.shorten(first, 160, placeholder=" ...")
