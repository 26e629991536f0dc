"""Prompts of a wanted length: noise for pictures, random words around them.

How many visual tokens a picture gives is the architecture's to say. Qwen takes pictures of any size, so every number
can be had; LLaVA-1.5 takes pictures of one size, so whole multiples of theirs; LLaVA-NeXT tiles pictures, so what its
packing allows. Where the wanted number cannot be had it is the nearest one, and the prompt tells which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from halfv_accel.adapters import family_of
from halfv_accel.downsample import Downsample, check_model_shrinks, nearest_grid
from halfv_accel.errors import HalfVError

FEWEST_WORDS = 4  # of text: before and behind the picture, and Qwen's two marks around it
USUAL_SIDE = 24  # visual tokens along the side of LLaVA-1.5's pictures
SIDES = range(16, 33)  # near it


@dataclass(frozen=True)
class Prompt:
    """What `generate` takes, and how many tokens of each kind are in it.

    Parameters
    ----------
    inputs : dict
    visual, text : list of int
        Tokens of each row; padding counts for neither.
    """

    inputs: dict[str, Tensor]
    visual: list[int]
    text: list[int]


@dataclass(frozen=True)
class Pictures:
    """Noise for one row: visual tokens of each picture, and what the model's forward wants beside the ids."""

    tokens: list[int]
    features: dict[str, Tensor]


def build_prompt(
    model: Any, visual_tokens: int, text_tokens: int, batch: int = 1, ragged: bool = False, seed: int = 0
) -> Prompt:
    """A batch of prompts; half of the text stands before the pictures, half behind.

    Parameters
    ----------
    visual_tokens, text_tokens : int
        Of each row.
    ragged : bool
        Rows hold from all of the visual tokens down to half of them, padded on the left.

    Raises
    ------
    HalfVError
        If it is known for no model of this class how pictures become tokens, or if a number is too small.
    """
    config = model.config
    if config.model_type not in PICTURES:
        raise HalfVError(
            f"no prompts can be made up for {type(model).__name__}: give a model of type {', '.join(PICTURES)}"
        )
    for what, number, least in (("visual", visual_tokens, 1), ("text", text_tokens, FEWEST_WORDS), ("row", batch, 1)):
        if number < least:
            raise HalfVError(f"a prompt of {number} {what} tokens makes no sense: give at least {least}")
    wanted = ragged_sizes(visual_tokens, batch) if ragged else [visual_tokens] * batch
    return _prompt(model, wanted, [text_tokens] * batch, PICTURES[config.model_type], seed)


def shrink_prompt(model: Any, prompt: Prompt, downsample: Downsample, seed: int = 0) -> Prompt:
    """A prompt as `build_prompt` makes them, of the same text and with smaller pictures.

    Raises
    ------
    HalfVError
        If the model's pictures do not have fewer tokens for being smaller.
    """
    check_model_shrinks(model)
    return _prompt(model, prompt.visual, prompt.text, partial(_qwen, downsample=downsample), seed)


def _prompt(
    model: Any,
    visual: Sequence[int],
    text: Sequence[int],
    noise: Callable[[Any, int, torch.Generator], Pictures],
    seed: int,
) -> Prompt:
    """One row for each number of visual tokens, with pictures of noise."""
    family, config = family_of(model), model.config
    draw = torch.Generator().manual_seed(seed)
    pictures = [noise(model, size, draw) for size in visual]
    rows = [_ids(model, row.tokens, words, draw) for row, words in zip(pictures, text, strict=True)]
    ids, mask = _left_padded(rows, _words(config, 1, draw)[0])
    inputs = {"input_ids": ids, "attention_mask": mask, **_stacked([row.features for row in pictures])}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).long()
    seen = (family.visual_positions(ids) & mask.bool()).sum(1)
    return Prompt(
        {name: _placed(tensor, model) for name, tensor in inputs.items()},
        seen.tolist(),
        (mask.sum(1) - seen).tolist(),
    )


def ragged_sizes(most: int, batch: int) -> list[int]:
    """From all down to half, evenly."""
    return [most - row * (most - math.ceil(most / 2)) // max(1, batch - 1) for row in range(batch)]


def best_side(visual_tokens: int) -> int:
    """Side s of LLaVA's pictures with which some of them come nearest to a number of tokens; of several, near 24."""
    whole = math.isqrt(visual_tokens)
    sides = SIDES if whole >= SIDES[0] else range(max(1, whole // 2), whole + 1)
    return min(sides, key=lambda side: (abs(_multiple(visual_tokens, side**2) - visual_tokens), abs(side - USUAL_SIDE)))


def near_square(cells: int) -> tuple[int, int]:
    """Height and width, h <= w, of h x w = `cells`."""
    height = next(side for side in range(math.isqrt(cells), 0, -1) if cells % side == 0)
    return height, cells // height


def _multiple(number: int, unit: int) -> int:
    """The multiple of a unit, at least one, that is nearest to a number."""
    return unit * max(1, round(number / unit))


def _llava(model: Any, visual: int, draw: torch.Generator) -> Pictures:
    vision, config = model.config.vision_config, model.config
    each = (vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy == "full")
    count = _multiple(visual, each) // each
    pixels = torch.randn(count, 3, vision.image_size, vision.image_size, generator=draw)
    return Pictures([each] * count, {"pixel_values": pixels})


def _llava_next(model: Any, visual: int, draw: torch.Generator) -> Pictures:
    """As many pictures as are needed, each of the size whose packing comes nearest to its share."""
    vision, pinpoints = model.config.vision_config, model.config.image_grid_pinpoints
    reachable = _packings(model)
    tokens: list[int] = []
    for left in range(math.ceil(visual / max(reachable)), 0, -1):
        share = (visual - sum(tokens)) / left
        tokens.append(min(reachable, key=lambda count: abs(count - share)))
    sizes = [reachable[count] for count in tokens]
    tiles = [image_size_to_num_patches(size, pinpoints, vision.image_size) for size in sizes]
    pixels = torch.randn(len(sizes), max(tiles), 3, vision.image_size, vision.image_size, generator=draw)
    return Pictures(tokens, {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)})


def _packings(model: Any) -> dict[int, tuple[int, int]]:
    """Numbers of visual tokens that one picture can have, each with a size (height, width) that gives it.

    The model's own packing is asked, with features of width 1.
    """
    vision, pinpoints = model.config.vision_config, model.config.image_grid_pinpoints
    step, per_tile = vision.patch_size, (vision.image_size // vision.patch_size) ** 2
    sizes = [(height, most) for height in range(step, max(map(max, pinpoints)) + 1, step) for _, most in pinpoints]
    found: dict[int, tuple[int, int]] = {}
    for size in sorted({*sizes, *(size[::-1] for size in sizes)}):
        tiles = image_size_to_num_patches(size, pinpoints, vision.image_size)
        features = [torch.zeros(tiles, per_tile, 1)]
        found[int(model.model.pack_image_features(features, [size], "default", torch.zeros(1))[1])] = size
    return found


def _qwen(model: Any, visual: int, draw: torch.Generator, downsample: Downsample | None = None) -> Pictures:
    """One picture, as near to a square as the number allows, and perhaps shrunk."""
    vision = model.config.vision_config
    merge, grid = vision.spatial_merge_size, near_square(visual)
    if downsample is not None:
        grid = nearest_grid(*grid, downsample.most(visual))
    rows, columns = (side * merge for side in grid)
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(rows * columns, values, generator=draw)
    return Pictures([math.prod(grid)], {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]])})


PICTURES: dict[str, Callable[[Any, int, torch.Generator], Pictures]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
}


def _ids(model: Any, pictures: list[int], text: int, draw: torch.Generator) -> Tensor:
    """Words, pictures, words: [S]. Qwen's marks around a picture are text."""
    config = model.config
    start, end = (getattr(config, f"vision_{edge}_token_id", None) for edge in ("start", "end"))
    before, behind = ([] if mark is None else [mark] for mark in (start, end))
    inner = [token for count in pictures for token in (*before, *[config.image_token_id] * count, *behind)]
    words = _words(config, text - len(inner) + sum(pictures), draw)
    half = len(words) // 2
    return torch.cat([words[:half], torch.tensor(inner), words[half:]])


def _words(config: Any, count: int, draw: torch.Generator) -> Tensor:
    """Random ids that mean nothing to the model: no placeholder, no mark, no end."""
    text = config.get_text_config()
    special = set()
    for name, value in {**text.to_dict(), **config.to_dict()}.items():
        if name.endswith(("_token_id", "_token_index")):
            special |= set(value if isinstance(value, list) else [value])
    usual = torch.tensor([token for token in range(min(text.vocab_size, 1000)) if token not in special])
    return usual[torch.randint(len(usual), (count,), generator=draw)]


def _left_padded(rows: list[Tensor], filler: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and attention mask: [B, S] each."""
    width = max(map(len, rows))
    ids, mask = filler.repeat(len(rows), width), torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :] = tokens
        mask[row, width - len(tokens) :] = 1
    return ids, mask


def _stacked(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All pictures of the batch, one after the other; LLaVA-NeXT's have empty tiles up to the largest number."""

    def join(tensors: list[Tensor]) -> Tensor:
        if tensors[0].ndim == 5:
            most = max(tensor.shape[1] for tensor in tensors)
            tensors = [torch.cat([t, t.new_zeros(len(t), most - t.shape[1], *t.shape[2:])], dim=1) for t in tensors]
        return torch.cat(tensors)

    return {name: join([row[name] for row in rows]) for name in rows[0]}


def _placed(tensor: Tensor, model: Any) -> Tensor:
    return tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
