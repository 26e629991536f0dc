"""Samples: one picture, one question, one answer.

A stream of samples is decided by (split, seed, index) alone. The split is part of the random seed, so a model trained
on "training" has met no picture of "calibration" or "heldout".

>>> first, second = scenes(2, seed=0)
>>> first.task, second.task
('colour', 'location')
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from PIL import Image

from halfv_data.drawing import SPLITS, Scene, Shape, Split, Thing, draw_scene, scene_rng
from halfv_data.errors import DataError
from halfv_data.questions import TASKS, Question, ask

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Sample:
    """A picture and a question about it.

    ``answer`` is None where it is not known. ``objects`` are the drawn things, shapes first, as plain dicts with a
    ``kind`` of "shape" or "number" and the fields of ``drawing.Shape`` or ``drawing.Number``; empty for photographs.
    """

    image: Image.Image
    question: str
    answer: str | None = None
    task: str = UNLABELLED
    objects: list[dict] = field(default_factory=list)


def scenes(n: int, seed: int, split: Split = "calibration", tasks: Sequence[str] = TASKS) -> Iterator[Sample]:
    """Draw samples, one question a picture.

    Parameters
    ----------
    n : int
        How many.
    seed : int
        Another seed gives other pictures.
    split : {"training", "validation", "calibration", "heldout"}
        Splits share no picture.
    tasks : sequence of str
        Sample i asks ``tasks[i % len(tasks)]``, so the tasks are balanced.

    Yields
    ------
    Sample

    Raises
    ------
    DataError
        At once, not on the first sample: if n is not positive, or a task or the split is unknown.
    """
    if n <= 0:
        raise DataError(f"{n} samples asked for: ask for at least 1")
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise DataError(f"unknown tasks {unknown}: expected some of {', '.join(TASKS)}")
    return (_draw(scene_rng(split, seed, index), tasks[index % len(tasks)]) for index in range(n))


def fingerprint(samples: Iterable[Sample]) -> str:
    """Sixteen hex digits over pixels, questions and answers, in order: equal samples have equal fingerprints."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.image.size, sample.image.mode, sample.question, sample.answer)).encode())
        digest.update(sample.image.tobytes())
    return digest.hexdigest()[:16]


def _draw(rng: random.Random, task: str) -> Sample:
    """A sample of this task; a scene that cannot answer it is drawn anew from the same stream."""
    while True:
        scene = draw_scene(rng)
        if found := ask(scene, task, rng):
            return _sample(scene, found[0])


def _sample(scene: Scene, question: Question) -> Sample:
    objects = [_as_dict(thing) for thing in scene.objects]
    return Sample(scene.image, question.text, question.answer, question.task, objects)


def _as_dict(thing: Thing) -> dict:
    return {"kind": "shape" if isinstance(thing, Shape) else "number", **asdict(thing)}
