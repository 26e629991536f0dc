"""Questions about a scene, each with one short answer that follows from what was drawn.

Nine tasks. Six need one look (colour, location, existence, counting, number, relation), three need two hops: find a
named thing, step to its neighbour, read it (number_beside, shape_beside, colour_beside). A question is asked only where
its answer is unique in the picture.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from halfv_data.drawing import COLOURS, COLUMNS, ROWS, SHAPES, Number, Scene, Shape, Thing, _pick, _sample

STEPS = {"above": (-1, 0), "below": (1, 0), "left of": (0, -1), "right of": (0, 1)}


@dataclass(frozen=True)
class Question:
    """A question, its answer, and where in the picture both are grounded.

    ``named`` are the things that the question mentions, in order of mention; ``target`` is the cell (0..8, row by row)
    that holds the answer, None where no single cell does.
    """

    task: str
    text: str
    answer: str
    named: tuple[Thing, ...] = ()
    target: int | None = None


def place(cell: int) -> str:
    return f"{ROWS[cell // 3]} {COLUMNS[cell % 3]}"


def ask(scene: Scene, task: str, rng: random.Random) -> list[Question]:
    """All questions of one task that this scene can answer, in random order; possibly none."""
    found = list(_TASKS[task](scene, rng))
    return _sample(rng, found, len(found))


def _name(scene: Scene, thing: Shape, rng: random.Random) -> str | None:
    """An unambiguous phrase for a shape, with its colour where needed (sometimes without need), or None."""
    if sum(s.shape == thing.shape for s in scene.shapes) == 1 and rng.random() < 0.7:
        return f"the {thing.shape}"
    if sum((s.shape, s.colour) == (thing.shape, thing.colour) for s in scene.shapes) == 1:
        return f"the {thing.colour} {thing.shape}"
    return None


def _colour(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for thing in scene.shapes:
        if sum(s.shape == thing.shape for s in scene.shapes) == 1:
            yield Question("colour", f"What color is the {thing.shape}?", thing.colour, (thing,), thing.cell)


def _location(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for thing in scene.shapes:
        if name := _name(scene, thing, rng):
            yield Question("location", f"Where is {name}?", place(thing.cell), (thing,), thing.cell)


def _existence(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """One question a scene, "yes" and "no" equally likely; most "no" pairs change one word of a pair that is there."""
    pairs = [(s.colour, s.shape) for s in scene.shapes]
    if rng.random() < 0.5:
        colour, shape = _pick(rng, pairs)
        answer = "yes"
    else:
        answer = "no"
        while True:
            colour, shape = _pick(rng, pairs)
            if rng.random() < 0.5:
                colour = _pick(rng, list(COLOURS))
            else:
                shape = _pick(rng, SHAPES)
            if (colour, shape) not in pairs:
                break
    yield Question("existence", f"Is there a {colour} {shape}?", answer)


def _counting(scene: Scene, rng: random.Random) -> Iterator[Question]:
    yield Question("counting", "How many shapes are there?", str(len(scene.shapes)))
    yield Question("counting", "How many numbers are there?", str(len(scene.numbers)))


def _number(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for number in scene.numbers:
        yield Question("number", f"What number is at the {place(number.cell)}?", number.text, (), number.cell)


def _relation(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """Which side of one shape another lies on, asked only where one axis clearly dominates."""
    for a in scene.shapes:
        for b in scene.shapes:
            dx, dy = a.x - b.x, a.y - b.y
            if a is b or max(abs(dx), abs(dy)) < 30:
                continue
            if abs(dx) > 1.6 * abs(dy):
                answer = "right" if dx > 0 else "left"
            elif abs(dy) > 1.6 * abs(dx):
                answer = "below" if dy > 0 else "above"
            else:
                continue
            first, second = _name(scene, a, rng), _name(scene, b, rng)
            if first and second:
                yield Question("relation", f"Where is {first} relative to {second}?", answer, (a, b))


def _neighbours(scene: Scene, thing: Thing) -> Iterator[tuple[str, Thing]]:
    at = {other.cell: other for other in scene.objects}
    for direction, (down, right) in STEPS.items():
        row, column = thing.cell // 3 + down, thing.cell % 3 + right
        if 0 <= row < 3 and 0 <= column < 3 and row * 3 + column in at:
            yield direction, at[row * 3 + column]


def _number_beside(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for thing in scene.shapes:
        for direction, other in _neighbours(scene, thing):
            if isinstance(other, Number) and (name := _name(scene, thing, rng)):
                yield Question("number_beside", f"What number is {direction} {name}?", other.text, (thing,), other.cell)


def _shape_beside(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for number in scene.numbers:
        for direction, other in _neighbours(scene, number):
            if isinstance(other, Shape):
                text = f"What shape is {direction} the number {number.text}?"
                yield Question("shape_beside", text, other.shape, (number,), other.cell)


def _colour_beside(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for thing in scene.shapes:
        for direction, other in _neighbours(scene, thing):
            if isinstance(other, Shape) and (name := _name(scene, thing, rng)):
                text = f"What color is the shape {direction} {name}?"
                yield Question("colour_beside", text, other.colour, (thing,), other.cell)


_TASKS = {
    "colour": _colour,
    "location": _location,
    "existence": _existence,
    "counting": _counting,
    "number": _number,
    "relation": _relation,
    "number_beside": _number_beside,
    "shape_beside": _shape_beside,
    "colour_beside": _colour_beside,
}
TASKS = tuple(_TASKS)
