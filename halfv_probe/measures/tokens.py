"""What each token of a batch is: visual, text or padding, and which one comes last.

Padding is what the attention mask calls padding, on either side. A placeholder id whose features are not among the
inputs is text, as it is for the model.

>>> tokens_of(family, inputs).visual.sum(dim=1)  # doctest: +SKIP
tensor([576])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfv_accel.adapters import Family
from halfv_accel.errors import HalfVError


@dataclass(frozen=True)
class Tokens:
    """``visual`` and ``text`` are bool [B, S] and exclude each other; padding is neither. ``last`` is long [B], the
    position of each prompt's last token."""

    visual: Tensor
    text: Tensor
    last: Tensor

    @property
    def first(self) -> Tensor:
        """Position of each prompt's first token: long [B]."""
        return (self.visual | self.text).int().argmax(dim=1)

    @property
    def text_behind(self) -> Tensor:
        """Text tokens behind the prompt's first visual token, those that can see one: bool [B, S]."""
        return self.text & (self.visual.cumsum(dim=1) > 0)


def tokens_of(family: Family, inputs: Mapping[str, Any], pictures: bool = True) -> Tokens:
    """Tell the tokens of processor outputs apart, on the device of ``input_ids``.

    Parameters
    ----------
    family : Family
    inputs : mapping
        What the processor returns for one or several prompts, padded on either side.
    pictures : bool
        Whether every prompt must hold a visual token.

    Raises
    ------
    HalfVError
        If ``input_ids`` are missing, the attention mask is not [B, S], or a prompt without a picture needs one.
    """
    ids = inputs.get("input_ids")
    if ids is None:
        raise HalfVError("the inputs hold no input_ids, which say where the visual tokens are: pass them")
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape != ids.shape:
        raise HalfVError(
            f"attention_mask has shape {tuple(mask.shape)}, but input_ids {tuple(ids.shape)}: pass a 2-D mask"
        )
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
    visual = family.visual_positions(ids, family.modalities(inputs)) & real
    if pictures and not visual.any(dim=1).all():
        row = int((~visual.any(dim=1)).nonzero()[0])
        raise HalfVError(f"prompt {row} of the batch holds no visual token: put a picture into each prompt")
    last = torch.where(real, torch.arange(ids.shape[1], device=ids.device), -1).max(dim=1).values
    return Tokens(visual, real & ~visual, last)
