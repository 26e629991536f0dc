"""What a model answers, and the prompt with that answer behind it.

Whether a plan leaves a reply unchanged needs no generation: greedy decoding gives the same tokens exactly if, with the
reply behind the prompt, every token of it is the most likely one at its place. So one prefill judges a whole reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from halfv_accel.adapters import family_of

REPLY_TOKENS = 8  # a longer reply is judged by its beginning


@dataclass(frozen=True)
class Replies:
    """Greedy replies of the untouched model: token ids of each prompt, up to and including the end token."""

    ids: list[list[int]]

    @property
    def longest(self) -> int:
        return max(map(len, self.ids))


@torch.no_grad()
def greedy_replies(model: PreTrainedModel, inputs: Mapping[str, Any], max_new_tokens: int = REPLY_TOKENS) -> Replies:
    """Ask the untouched model, without the sampling and the penalties that its own settings may hold.

    Parameters
    ----------
    inputs : mapping
        Processor outputs of one or several prompts, padded on the left.
    """
    own = model.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    model.generation_config = GenerationConfig(  # generate() fills what an argument leaves open from the model's own
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else ends[0],
    )
    try:
        generated = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :].tolist()
    finally:
        model.generation_config = own
    stops = [*ends, *family_of(model).placeholder_ids()]  # a placeholder behind the prompt would ask for pixels
    return Replies([_up_to_the_end(ids, stops) for ids in generated])


def with_replies(inputs: Mapping[str, Any], replies: Replies) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Prompts with their replies behind them, padded on the right.

    Returns
    -------
    dict
        Model inputs; the last token of a reply is left out, because nothing is predicted from it.
    Tensor
        (B, S) bool: the places that predict the reply's tokens.
    Tensor
        (B,) long: each prompt's own last token, with which visual tokens are scored.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    width = replies.longest - 1
    tail = torch.zeros(len(ids), width, dtype=ids.dtype, device=ids.device)
    for row, reply in enumerate(replies.ids):
        tail[row, : len(reply) - 1] = torch.tensor(reply[:-1], dtype=ids.dtype)
    lengths = torch.tensor([len(reply) for reply in replies.ids], device=ids.device)
    places = torch.arange(ids.shape[1] + width, device=ids.device)
    last = torch.arange(ids.shape[1], device=ids.device).masked_fill(mask == 0, 0).amax(dim=1)
    if width and bool((last != ids.shape[1] - 1).any()):
        raise ValueError("the prompts of a batch must be padded on the left, so that replies can follow them")
    extended = {**inputs, "input_ids": torch.cat([ids, tail], dim=1)}
    real = torch.arange(width, device=ids.device) < (lengths - 1)[:, None]
    extended["attention_mask"] = torch.cat([mask, real.to(mask.dtype)], dim=1)
    if "mm_token_type_ids" in inputs:  # Qwen: which tokens are text
        kinds = inputs["mm_token_type_ids"]
        extended["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(len(ids), width)], dim=1)
    wanted = (places >= last[:, None]) & (places < (last + lengths)[:, None])
    return extended, wanted, last


def _up_to_the_end(ids: Sequence[int], ends: Sequence[int | None]) -> list[int]:
    found = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return list(ids[: found + 1])
