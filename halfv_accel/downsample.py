"""Downsampling: the picture itself is shrunk, so that its processor's grid has as few visual tokens as wanted.

The cheapest of all methods, and a strong baseline (VTC-Bench): no token has to be chosen, and the vision tower has less
to do, too. It works where a picture's grid follows from its size, and acts before a model sees anything; so it belongs
to the making of prompts, and the engine has no part in it.

>>> nearest_grid(12, 16, tokens=48)
(6, 8)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from transformers import ProcessorMixin
from transformers.image_transforms import convert_to_rgb, to_pil_image

from halfv_accel.budget import token_budget
from halfv_accel.errors import HalfVError
from halfv_accel.processors import brief

CUTS = "Qwen2VLImageProcessor"  # what Qwen2-VL, Qwen2.5-VL and Qwen3-VL cut pictures with, and how its kinds begin
FAMILIES = "Qwen2-VL, Qwen2.5-VL, Qwen3-VL"
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WAY_OUT = f"choose a method that picks tokens, such as divprune::64 (pictures of {FAMILIES} can be shrunk)"
TILES = (
    "shows every picture whole in a grid of one size, and scales its tiles up to fixed sizes, so a smaller picture has "
    "hardly fewer visual tokens"
)
FIXED = "has the same number of visual tokens for a picture of any size, so shrinking it would save none"
Grid = tuple[int, int]  # rows and columns of visual tokens


@dataclass(frozen=True)
class Downsample:
    """To how many visual tokens the pictures of a prompt are shrunk, at most.

    Parameters
    ----------
    retention : float
        As a share of those that the pictures have as they are.
    tokens : int, optional
        As a number, whatever they have, for all pictures of a row together. Instead of the retention.
    """

    retention: float = 1.0
    tokens: int | None = None

    def __post_init__(self) -> None:
        share, count = self.retention, self.tokens
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not (number and 0 < share <= 1):
            raise HalfVError(f"downsample has retention {share!r}: give a number in (0, 1]")
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise HalfVError(f"downsample has tokens={count!r}: give a whole number of at least 1")
        if count is not None and share != 1:
            raise HalfVError("downsample has a retention and a number of tokens: give one of them")

    def most(self, visual: int) -> int:
        """The most visual tokens that a row of so many is left with."""
        return token_budget(visual, self.retention) if self.tokens is None else min(self.tokens, visual)

    @property
    def keeps_everything(self) -> bool:
        return self.retention == 1 and self.tokens is None


@dataclass(frozen=True)
class Shrunk:
    """Pictures that were shrunk, row by row, and what the processor has to be told.

    Parameters
    ----------
    rows : list of list
        PIL pictures; those that need no change are the ones that were given.
    options : dict
        For this one call of the processor, ``processor(..., images_kwargs=options)``: its limits, where it would scale
        a picture up again. Empty if nothing was shrunk.
    before, after : list of int
        Visual tokens of each row.
    """

    rows: list[list[Any]]
    options: dict[str, Any] = field(default_factory=dict)
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


def shrink_pictures(processor: ProcessorMixin, rows: Sequence[Sequence[Any]], wanted: Downsample) -> Shrunk:
    """Resize pictures so that the processor gives each row at most the wanted number of visual tokens.

    A row's tokens are divided over its pictures in proportion to those that they have, and at least one each. How near
    a picture comes to its share is said in `nearest_grid`. The processor stays as it is.

    Parameters
    ----------
    processor : ProcessorMixin
        Of Qwen2-VL, Qwen2.5-VL or Qwen3-VL, or another with their image processor.
    rows : sequence of sequence of PIL.Image
        The pictures of each prompt; arrays that PIL can take are made pictures.

    Raises
    ------
    HalfVError
        If the processor's grid does not follow from the size of a picture, or a picture is none.

    Examples
    --------
    >>> shrunk = shrink_pictures(processor, [[picture]], Downsample(tokens=64))  # doctest: +SKIP
    >>> inputs = processor(images=shrunk.rows, text=[text], images_kwargs=shrunk.options)  # doctest: +SKIP
    """
    cutter = _Cutter.of(processor)
    pictures = [[_picture(image) for image in row] for row in rows]
    untouched = [[cutter.grid(picture) for picture in row] for row in pictures]
    grids = [_grids(row, wanted) for row in untouched]
    before, after = ([sum(map(math.prod, row)) for row in of] for of in (untouched, grids))
    if grids == untouched:
        return Shrunk([list(row) for row in rows], {}, before, after)
    shortest, longest = cutter.limits
    areas = [math.prod(grid) * cutter.unit**2 for row in grids for grid in row]
    limits = min(shortest, *areas), max(longest, *areas)
    resized = [
        [
            given if cutter.cuts(picture, grid, limits) else cutter.resized(picture, grid)
            for given, picture, grid in zip(*row, strict=True)
        ]
        for row in zip(rows, pictures, grids, strict=True)
    ]
    changed = {} if limits == cutter.limits else {"size": {"shortest_edge": limits[0], "longest_edge": limits[1]}}
    return Shrunk(resized, changed, before, after)


def visual_tokens(processor: ProcessorMixin, images: Sequence[Any]) -> int:
    """Visual tokens that pictures have as they are; for processors that `shrink_pictures` takes."""
    cutter = _Cutter.of(processor)
    return sum(math.prod(cutter.grid(_picture(image))) for image in images)


def nearest_grid(rows: int, columns: int, tokens: int) -> Grid:
    """The grid with at most so many tokens that a picture of rows x columns is shrunk to.

    Exactly `tokens` in the picture's aspect ratio would take sides that are no whole numbers. Of all grids without more
    tokens, and without a longer side than the picture has, it is the one whose sides are nearest to these: whose larger
    relative error is the smallest. Of several, the one with the most tokens, then the wider one.

    Parameters
    ----------
    rows, columns : int
        Of the picture as it is.
    tokens : int
        At least 1.
    """
    if tokens >= rows * columns:
        return rows, columns
    height, width = Fraction(rows * tokens, columns), Fraction(columns * tokens, rows)  # the exact sides, squared

    def quality(grid: Grid) -> tuple[Fraction, int, int]:
        high, wide = grid
        errors = (high**2 / height, wide**2 / width)
        return -max(max(error, 1 / error) for error in errors), high * wide, wide

    # For a height, the longest width that fits is the best one: a longer row is never farther off than the height is.
    return max(((high, min(columns, tokens // high)) for high in range(1, min(rows, tokens) + 1)), key=quality)


def divided(tokens: int, pictures: Sequence[int]) -> list[int]:
    """A row's tokens divided over its pictures in proportion to their own, at least one each."""
    left, spare = max(0, tokens - len(pictures)), sum(pictures) - len(pictures)
    return [1 + (left * (own - 1) // spare if spare else 0) for own in pictures]


def check_shrinks(processor: ProcessorMixin) -> None:
    """Refuse a processor whose grid does not follow from the size of a picture."""
    _Cutter.of(processor)


def check_model_shrinks(model: Any) -> None:
    """Refuse a model whose pictures `shrink_pictures` could not shrink; its processor may be out of reach."""
    kind = model.config.model_type
    if kind not in MODEL_TYPES:
        raise HalfVError(_why_not(type(model).__name__, "next" in kind))


def _why_not(name: str, tiles: bool) -> str:
    return f"downsample is not for {name}, which {TILES if tiles else FIXED}: {WAY_OUT}"


def _grids(untouched: Sequence[Grid], wanted: Downsample) -> list[Grid]:
    tokens = [math.prod(grid) for grid in untouched]
    shares = divided(wanted.most(sum(tokens)), tokens)
    return [nearest_grid(*grid, share) for grid, share in zip(untouched, shares, strict=True)]


def _picture(image: Any) -> Any:
    """A PIL picture, in colours as the processor makes them; a path or URL would have to be opened first."""
    try:
        picture = to_pil_image(image)
        return picture if picture.mode == "RGB" else to_pil_image(convert_to_rgb(picture, return_numpy=True))
    except (ValueError, TypeError) as error:
        raise HalfVError(
            f"{str(image)[:60]!r} is no picture but of type {type(image).__name__}: open it, and give a PIL picture"
        ) from error


@dataclass(frozen=True)
class _Cutter:
    """How an image processor of the Qwen family cuts up pictures.

    Parameters
    ----------
    unit : int
        Pixels along the side of a visual token.
    limits : tuple of int
        Of a picture's area in pixels; it is scaled to lie between them.
    smart_resize : callable, optional
        The processor's own rule from height and width to those of the grid; None if it takes pictures as they are.
    """

    unit: int
    limits: tuple[int, int]
    resample: Any
    smart_resize: Callable[..., tuple[int, int]] | None

    @classmethod
    def of(cls, processor: ProcessorMixin) -> _Cutter:
        images = getattr(processor, "image_processor", None)
        kind = next((kind for kind in type(images).__mro__ if kind.__name__.startswith(CUTS)), None)
        if images is None or kind is None:
            raise HalfVError(_why_not(type(processor).__name__, "Next" in type(images).__name__))
        rule = sys.modules[kind.__module__].smart_resize if images.do_resize else None
        limits = (images.size["shortest_edge"], images.size["longest_edge"])
        return cls(images.patch_size * images.merge_size, limits, images.resample, rule)

    def size(self, picture: Any, limits: tuple[int, int]) -> tuple[int, int]:
        """Height and width that the processor gives a picture under some limits."""
        if self.smart_resize is None:
            return picture.height, picture.width
        try:
            return self.smart_resize(
                picture.height, picture.width, factor=self.unit, min_pixels=limits[0], max_pixels=limits[1]
            )
        except ValueError as error:
            what = f"a picture of {picture.width} x {picture.height} pixels cannot be cut up ({brief(error)})"
            raise HalfVError(f"{what}: crop it") from error

    def grid(self, picture: Any) -> Grid:
        height, width = self.size(picture, self.limits)
        return height // self.unit, width // self.unit

    def cuts(self, picture: Any, grid: Grid, limits: tuple[int, int]) -> bool:
        """Would the processor cut the picture into this grid by itself?"""
        return self.size(picture, limits) == (grid[0] * self.unit, grid[1] * self.unit)

    def resized(self, picture: Any, grid: Grid) -> Any:
        return picture.resize((grid[1] * self.unit, grid[0] * self.unit), resample=self.resample)
