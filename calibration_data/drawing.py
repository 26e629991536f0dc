"""Procedural scenes: coloured shapes and two-digit numbers on a 3 x 3 grid, with texture and clutter.

A scene is 192 x 192 px, nine cells of 64 px. Three to six cells hold a shape, two or three hold a number, the others
stay empty. Behind them lie a shaded background, grain and low-contrast clutter whose amount varies from image to image,
so that some pictures are simple and some are busy.

Everything is drawn from integers: shapes are polygons and ellipses with rounded corners, digits are a 5 x 7 bitmap
scaled up, and randomness comes from ``random.Random`` (its ``random()`` is stable across Python versions) and from raw
PCG64 words (a stream that NumPy guarantees). No font and no anti-aliasing is involved, so a seed draws the same picture
on every machine.

>>> scene = draw_scene(scene_rng("calibration", seed=0, index=0))
>>> scene.image.size
(192, 192)
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageDraw

T = TypeVar("T")
Split = Literal["training", "validation", "calibration", "heldout"]
SPLITS: tuple[Split, ...] = ("training", "validation", "calibration", "heldout")

SIZE = 192
CELL = 64
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 225),
    "yellow": (240, 220, 45),
    "purple": (140, 45, 180),
    "orange": (245, 135, 20),
    "cyan": (40, 205, 215),
    "pink": (250, 130, 190),
}


def _star() -> list[tuple[float, float]]:
    radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
    return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]


def _heart() -> list[tuple[float, float]]:
    points = []
    for i in range(24):
        t = 2 * math.pi * i / 24
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((16 * math.sin(t) ** 3 / 17, -y / 17))
    return points


_ARM = 0.33
POLYGONS = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
    "star": _star(),
    "heart": _heart(),
    "cross": [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
    + [(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
}
SHAPES = ("circle", "ring", *POLYGONS)

GLYPH_WIDTH, GLYPH_HEIGHT = 5, 7
# One string a digit, seven rows of five pixels.
GLYPHS = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}


@dataclass(frozen=True)
class Shape:
    """A coloured shape in one cell; ``x``, ``y`` and ``radius`` in pixels."""

    cell: int
    shape: str
    colour: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Number:
    """A two-digit number in one cell; ``x`` and ``y`` is its upper left corner, ``scale`` the pixels per glyph dot."""

    cell: int
    text: str
    x: int
    y: int
    scale: int


Thing = Shape | Number


@dataclass(frozen=True)
class Scene:
    """A picture and what was drawn in it."""

    image: Image.Image
    shapes: tuple[Shape, ...]
    numbers: tuple[Number, ...]

    @property
    def objects(self) -> tuple[Thing, ...]:
        """Shapes first, then numbers."""
        return (*self.shapes, *self.numbers)


def scene_rng(split: Split, seed: int, index: int) -> random.Random:
    """Random source of scene ``index``: the split is part of the seed, so two splits never share a stream."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    return random.Random(f"halfv/{split}/{seed}/{index}")


def draw_scene(rng: random.Random, clutter: float = 1.0) -> Scene:
    """Draw one scene.

    Parameters
    ----------
    rng : random.Random
        Consumed; the same state draws the same scene.
    clutter : float
        0 (plain background) to 1 (up to full texture and clutter, varying from scene to scene).
    """
    base = _between(rng, 70, 190)
    canvas = Image.fromarray(_background(rng, base, clutter))
    draw = ImageDraw.Draw(canvas)
    _draw_clutter(draw, rng, base, clutter)
    shape_count, number_count = _between(rng, 3, 6), _between(rng, 2, 3)
    cells = _sample(rng, range(9), shape_count + number_count)
    # A small palette per picture makes repeats, and so counts above one, common.
    colours = _sample(rng, list(COLOURS), _between(rng, 2, 6))
    kinds = _sample(rng, SHAPES, _between(rng, 3, 8))
    shapes = tuple(_draw_shape(draw, rng, cell, _pick(rng, colours), _pick(rng, kinds)) for cell in cells[:shape_count])
    values = _sample(rng, range(10, 100), number_count)
    numbers = tuple(
        _draw_number(draw, rng, cell, str(value), base) for cell, value in zip(cells[shape_count:], values, strict=True)
    )
    return Scene(canvas, shapes, numbers)


# random.Random guarantees only random() across Python versions, so the other draws are built on it here.


def _between(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _pick(rng: random.Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _sample(rng: random.Random, items: Iterable[T], count: int) -> list[T]:
    pool = list(items)
    return [pool.pop(int(rng.random() * len(pool))) for _ in range(count)]


def _background(rng: random.Random, base: int, clutter: float) -> np.ndarray:
    """Shaded, tinted and grainy background, uint8 [SIZE, SIZE, 3]."""
    tint = np.array([_between(rng, -15, 15) for _ in range(3)])
    slope_x, slope_y = (_between(rng, -40, 40) * clutter for _ in range(2))
    ramp = np.arange(SIZE) / SIZE - 0.5
    shade = slope_x * ramp[None, :] + slope_y * ramp[:, None]
    grain = rng.random() ** 2 * 24 * clutter  # most pictures are smooth, a few are rough
    words = np.random.PCG64(int(rng.random() * 2**53)).random_raw(SIZE * SIZE // 8)
    noise = words.view(np.uint8).reshape(SIZE, SIZE) / 255 - 0.5
    pixels = base + tint + (shade + 2 * grain * noise)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _draw_clutter(draw: ImageDraw.ImageDraw, rng: random.Random, base: int, clutter: float) -> None:
    for _ in range(int(rng.random() ** 1.5 * 14 * clutter)):
        grey = max(0, min(255, base + _pick(rng, (-1, 1)) * _between(rng, 10, 35)))
        x, y = _between(rng, 0, SIZE - 1), _between(rng, 0, SIZE - 1)
        if rng.random() < 0.6:
            end = (x + _between(rng, -60, 60), y + _between(rng, -60, 60))
            draw.line([(x, y), end], fill=(grey,) * 3, width=_between(rng, 1, 3))
        else:
            r = _between(rng, 2, 6)
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(grey,) * 3)


def _draw_shape(draw: ImageDraw.ImageDraw, rng: random.Random, cell: int, colour: str, shape: str) -> Shape:
    r = _between(rng, 14, 24)
    x = cell % 3 * CELL + _between(rng, r + 3, CELL - r - 3)
    y = cell // 3 * CELL + _between(rng, r + 3, CELL - r - 3)
    fill = tuple(max(0, min(255, channel + _between(rng, -14, 14))) for channel in COLOURS[colour])
    angle = rng.random() * 0.4 - 0.2
    box = [x - r, y - r, x + r, y + r]
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=max(4, r * 2 // 5))
    else:
        c, s = math.cos(angle) * r, math.sin(angle) * r
        draw.polygon([(round(x + u * c - v * s), round(y + u * s + v * c)) for u, v in POLYGONS[shape]], fill=fill)
    return Shape(cell, shape, colour, x, y, r)


def _draw_number(draw: ImageDraw.ImageDraw, rng: random.Random, cell: int, text: str, base: int) -> Number:
    scale = _between(rng, 3, 4)
    width = (len(text) * (GLYPH_WIDTH + 1) - 1) * scale
    x = cell % 3 * CELL + _between(rng, 2, CELL - 2 - width)
    y = cell // 3 * CELL + _between(rng, 2, CELL - 2 - GLYPH_HEIGHT * scale)
    grey = _between(rng, 0, 25) if base > 120 else _between(rng, 230, 255)
    for position, digit in enumerate(text):
        left = x + position * (GLYPH_WIDTH + 1) * scale
        for row, bits in enumerate(GLYPHS[digit].split()):
            for column, bit in enumerate(bits):
                if bit == "1":
                    u, v = left + column * scale, y + row * scale
                    draw.rectangle([u, v, u + scale - 1, v + scale - 1], fill=(grey,) * 3)
    return Number(cell, text, x, y, scale)
