"""Samples: pictures or a video, one question, one answer.

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
from functools import cached_property
from typing import Any

from PIL import Image

from halfv_data.drawing import SPLITS, Scene, Shape, Split, Thing, draw_scene, scene_rng
from halfv_data.errors import DataError, shown
from halfv_data.pictures import Picture, Video
from halfv_data.questions import TASKS, Question, ask

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Sample:
    """Pictures, or a video, and a question about them.

    Parameters
    ----------
    pictures : tuple of Picture
        In the order in which the question refers to them; decoded when they are asked for.
    question : str
    answer : str, optional
        None where it is not known.
    task : str
        What kind of question it is.
    objects : list of dict
        The drawn things, shapes first, as plain dicts with a ``kind`` of "shape" or "number" and the fields of
        ``drawing.Shape`` or ``drawing.Number``; empty for photographs.
    video : Video, optional
        Asked about after the pictures.
    where : str
        The row that it came from, for messages: "samples.jsonl line 7".

    Raises
    ------
    DataError
        If the question, the answer or the task cannot be encoded as text.
    """

    pictures: tuple[Picture, ...]
    question: str
    answer: str | None = None
    task: str = UNLABELLED
    objects: list[dict] = field(default_factory=list)
    video: Video | None = None
    where: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for what, text in (("question", self.question), ("answer", self.answer or ""), ("task", self.task)):
            check_text(text, what, self.where)

    @classmethod
    def of(cls, image: Image.Image, question: str, answer: str | None = None, **others: Any) -> Sample:
        """A sample of one open image; the rest as in `Sample`."""
        return cls((Picture.of(image, others.get("where", "")),), question, answer, **others)

    @property
    def image(self) -> Image.Image:
        """The first picture, decoded now.

        Raises
        ------
        DataError
            If there is none, or if it cannot be decoded.
        """
        if not self.pictures:
            raise DataError(f"{self.where or 'the sample'} has no picture: give one")
        return self.pictures[0].load()

    @property
    def images(self) -> list[Image.Image]:
        """All pictures, decoded now."""
        return [picture.load() for picture in self.pictures]

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over pixels, question and answer, taken once; what tells this sample from others."""
        return fingerprint([self])


def check_text(text: str, what: str = "question", where: str = "") -> None:
    """Refuse what is in no encoding: a lone surrogate, half of a character that was cut in two or never decoded.

    Raises
    ------
    DataError
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = f"{where}: " if where else ""
        raise DataError(
            f"{at}the {what} {shown(text)} holds \\u{ord(text[error.start]):04x}, half of a character, which cannot be "
            "encoded as text: write that character again"
        ) from error


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
    """Sixteen hex digits over pixels, questions and answers, in order: equal samples have equal fingerprints.

    One picture after the other is decoded for it, and let go.
    """
    digest = hashlib.sha256()
    for sample in samples:
        asked = sample.question, sample.answer
        for picture in sample.pictures:
            image = picture.load()
            digest.update(repr((image.size, image.mode, *asked)).encode())
            digest.update(image.tobytes())
        if sample.video is not None or not sample.pictures:
            digest.update(repr((sample.video and sample.video.digest, *asked)).encode())
    return digest.hexdigest()[:16]


def _draw(rng: random.Random, task: str) -> Sample:
    """A sample of this task; a scene that cannot answer it is drawn anew from the same stream."""
    while True:
        scene = draw_scene(rng)
        if found := ask(scene, task, rng):
            return _sample(scene, found[0])


def _sample(scene: Scene, question: Question) -> Sample:
    objects = [_as_dict(thing) for thing in scene.objects]
    return Sample.of(scene.image, question.text, question.answer, task=question.task, objects=objects)


def _as_dict(thing: Thing) -> dict:
    return {"kind": "shape" if isinstance(thing, Shape) else "number", **asdict(thing)}
