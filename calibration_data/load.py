"""Samples from whatever people have: the shipped set, folders, lists, tables, shards, and data sets of the hub.

A reader gives rows (`sources`), names say which column is what (`columns`), rows become samples (`mapping`), and here
some of them are drawn. The pictures of those are decoded once, one after the other, because one that is cut off shows
itself only at its last pixel; what is kept is the file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from halfv_data.columns import Columns, guess, used
from halfv_data.errors import DataError, shown
from halfv_data.json_text import read_text
from halfv_data.mapping import samples_of
from halfv_data.rows import LeftOut, Reading, Source, Unusable
from halfv_data.samples import Sample, scenes
from halfv_data.sources import EXPECTED, read_source
from halfv_data.summary import Loaded, Summary

DEFAULT = Path(__file__).parent / "default"
METADATA = "metadata.jsonl"
SHIPPED_SEED = 0
SMALL = 10_000  # rows of a list that is checked as a whole; of a longer one, and of a data set, those that are drawn


def load_data(source: str | Path | None = None, n: int = 100, seed: int = 0, reading: Reading | None = None) -> Loaded:
    """Load up to n samples, in the order of the source, and say what was loaded.

    Parameters
    ----------
    source : str or Path, optional
        None or "default": the shipped set, and behind it more scenes of the same stream. Else a folder, a file, a
        pattern of files, or a name on the hub; docs/data.md lists the forms.
    n : int
        Fewer come back if the source has fewer (the shipped one never does); from more, n are drawn.
    seed : int
        Decides which usable ones are drawn.
    reading : Reading, optional
        Columns, folder of pictures, config, split, turns, and whether bad rows are left out.

    Returns
    -------
    Loaded

    Raises
    ------
    DataError
        With file and line for a bad row, and with what was expected for a source that cannot be read.
    """
    if n <= 0:
        raise DataError(f"{n} samples asked for: ask for at least 1")
    reading = reading or Reading()
    if source is None or str(source) == "default":
        return _load_shipped(n, seed, reading)
    return _draw(read_source(source, reading), n, seed, reading)


def load_samples(
    source: str | Path | None = None, n: int = 100, seed: int = 0, reading: Reading | None = None
) -> list[Sample]:
    """The samples of `load_data` alone."""
    return load_data(source, n, seed, reading).samples


def shipped_question() -> tuple[Path, str]:
    """Path of the first shipped picture and the question about it: something to try a model on."""
    first = json.loads(read_text(_shipped()).split("\n", 1)[0])
    return DEFAULT / first["file_name"], first["question"]


def _shipped() -> Path:
    if not (DEFAULT / METADATA).is_file():
        raise DataError(f"the shipped samples are missing from {DEFAULT}: draw them, python -m halfv_data.ship")
    return DEFAULT / METADATA


def _load_shipped(n: int, seed: int, reading: Reading) -> Loaded:
    loaded = _draw(read_source(_shipped(), Reading()), n, seed, reading)
    more = list(islice(scenes(n, SHIPPED_SEED), loaded.summary.rows, None))
    samples = [*loaded.samples, *more]
    answers = loaded.summary.answers + len(more)
    summary = replace(loaded.summary, source="default", kind="shipped", samples=len(samples), answers=answers)
    return Loaded(samples, replace(summary, drawn=len(more)))


def _draw(source: Source, n: int, seed: int, reading: Reading) -> Loaded:
    """n samples of the usable rows: the rows in an order that the seed decides, until there are enough."""
    if not len(source.rows):
        broken = f", {len(source.left_out)} rows are broken" if source.left_out else ""
        raise DataError(f"{shown(Path(source.name))} holds no samples{broken}: {EXPECTED}")
    mapper = _Mapper(source, guess(source, reading.columns), reading)
    rng = random.Random(f"halfv/subset/{seed}")
    order = sorted(range(len(source.rows)), key=lambda _: rng.random())
    if source.listed and len(order) <= SMALL:
        mapper.map_all()
        mapper.refuse_bad()
    chosen: list[tuple[tuple[int, int], Sample]] = []
    for index in order:
        for turn, sample in enumerate(mapper.usable(index)):
            chosen.append(((index, turn), sample))
        if len(chosen) + (0 if reading.skip_bad else len(mapper.bad)) >= n:
            break
    mapper.refuse_bad()
    samples = [sample for _, sample in sorted(chosen[:n], key=lambda item: item[0])]
    if not samples:
        first = mapper.first_error or DataError("nothing was left")
        raise DataError(f"{shown(Path(source.name))}: none of {len(order)} rows can be used; {first}") from first
    return Loaded(samples, mapper.summary(samples))


class _Mapper:
    """Rows to samples, with a record of those that are left out."""

    def __init__(self, source: Source, columns: Columns, reading: Reading) -> None:
        self.source, self.columns, self.reading = source, columns, reading
        self.mapped: dict[int, list[Sample]] = {}
        self.left_out: dict[int, LeftOut] = {}
        self.first_error: DataError | None = None
        self.bad: list[DataError] = []  # errors, as opposed to what a data set has by nature

    def map_all(self) -> None:
        """Look at every row, so that a bad one is named whether it is drawn or not."""
        for index in range(len(self.source.rows)):
            self.map(index)

    def refuse_bad(self) -> None:
        """Raise the first error with the number of all, unless they are to be left out."""
        if self.bad and not self.reading.skip_bad:
            count = f"{len(self.bad)} of {len(self.mapped)} rows cannot be used; --skip-bad leaves them out"
            raise DataError(f"{self.bad[0]} ({count})") from self.bad[0]

    def map(self, index: int) -> list[Sample]:
        """The samples of a row; none if it is left out."""
        if index not in self.mapped:
            self.mapped[index] = []
            row = self.source.rows[index]
            try:
                self.mapped[index] = samples_of(row, self.columns, self.reading, self.source.listed)
            except Unusable as error:
                self._leave_out(index, row.where, error, error.natural or not self.source.listed)
            except DataError as error:
                self._leave_out(index, row.where, error, False)
        return self.mapped[index]

    def usable(self, index: int) -> Iterator[Sample]:
        """The samples of a row whose pictures can be decoded to their last pixel."""
        for sample in self.map(index):
            try:
                sample.fingerprint  # noqa: B018, decodes them and remembers what it saw
            except DataError as error:
                self._leave_out(index, sample.where, error, False)
                return
            yield sample

    def _leave_out(self, index: int, where: str, error: DataError, expected: bool) -> None:
        self.first_error = self.first_error or error
        if not expected:
            self.bad.append(error)
        reason = error.reason if isinstance(error, Unusable) else str(error).removeprefix(where).lstrip(": ")
        self.left_out[index] = LeftOut(where, reason, bad=not expected)

    def summary(self, samples: list[Sample]) -> Summary:
        source = self.source
        broken = len(source.left_out)
        return Summary(
            source=source.name,
            kind=source.kind,
            rows=len(source.rows) + broken,
            seen=len(self.mapped) + broken,
            columns=self.columns,
            used=used(self.columns, source),
            samples=len(samples),
            answers=sum(sample.answer is not None for sample in samples),
            left_out=(*source.left_out, *(self.left_out[index] for index in sorted(self.left_out))),
            config=source.config,
            split=source.split,
            notes=source.notes,
        )
