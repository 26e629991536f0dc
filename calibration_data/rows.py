"""What every reader gives and what mapping takes: rows that know where they came from, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from halfv_data.errors import DataError, shown

SPLIT_ORDER = ("calibration", "validation", "val", "dev", "test", "train")


@dataclass(frozen=True)
class Reading:
    """How a source is read, where its own form does not say it.

    Parameters
    ----------
    columns : mapping of str to str
        Which columns are used: role to name, for example {"question": "text", "answer": "label"}. Several columns are
        joined by "+" ({"choices": "first+second"}), and an empty name says that there is none. Roles: `columns.ROLES`.
    images : Path, optional
        Where relative paths of pictures start; else beside the file that names them.
    config, split : str, optional
        Of a data set that has several.
    turns : {"first", "all"}
        Which questions of a conversation are asked. Each is asked by itself, without what was said before.
    skip_bad : bool
        Leave out what would else be an error.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    config: str | None = None
    split: str | None = None
    turns: Literal["first", "all"] = "first"
    skip_bad: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a source, its values as they were written."""

    where: str  # "samples.jsonl line 7"
    fields: Mapping[str, Any]
    folder: Path  # where its relative paths start


class Names(tuple[str, ...]):
    """Paths under one of which a picture lies, where a file names it by an id alone."""


@dataclass(frozen=True)
class LeftOut:
    """A row that is not used, and why; ``bad`` where that is a mistake, and not in the nature of its data set."""

    where: str
    reason: str
    bad: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Source:
    """Rows of one source.

    ``listed`` says that somebody wrote these rows as samples: one without a picture or a question is then a mistake.
    A data set has such rows by nature, and they are left out and counted.
    """

    name: str
    kind: str  # "JSON Lines", "Parquet", ...
    rows: Sequence[Row]
    listed: bool = False
    config: str | None = None
    split: str | None = None
    pictures: tuple[str, ...] = ()  # columns that hold pictures by their type
    left_out: tuple[LeftOut, ...] = ()  # while reading
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return shown(Path(self.name))

    def peek(self, names: Sequence[str], most: int = 1000) -> list[Mapping[str, Any]]:
        """The fields of these names, of up to ``most`` rows from all over the source; of "meta.answer", meta too."""
        names = list(dict.fromkeys([*names, *(name.split(".")[0] for name in names)]))
        if hasattr(self.rows, "peek"):
            return self.rows.peek(names, most)
        step = -(-len(self.rows) // most) or 1
        return [{name: row.fields.get(name) for name in names} for row in self.rows[::step]]

    @property
    def columns(self) -> list[str]:
        """Names of all fields, in the order in which they appear."""
        if hasattr(self.rows, "columns"):
            return list(self.rows.columns)
        step = -(-len(self.rows) // 1000) or 1
        return list(dict.fromkeys(name for row in self.rows[::step] for name in row.fields))


class Unusable(DataError):
    """A row that cannot be a sample; ``reason`` is the same for all rows of its kind, so that they can be counted.

    Where such rows are ``natural``, as those without a picture are among conversations, they are no mistake.
    """

    def __init__(self, where: str, reason: str, advice: str, natural: bool = False) -> None:
        super().__init__(f"{where}: {reason}: {advice}")
        self.reason, self.natural = reason.split(" (")[0], natural


def choose_split(name: str, splits: Sequence[str], wanted: str | None) -> str:
    """The split that was asked for, else the one that is least likely to have been trained on.

    Raises
    ------
    DataError
        If there is no such split, or none at all.
    """
    if wanted is not None:
        if not splits:
            raise DataError(f"{shown(Path(name))} has no splits: leave --split out")
        if wanted not in splits:
            raise DataError(f"{shown(Path(name))} has no split {brief(wanted)}: choose --split from {listing(splits)}")
        return wanted
    if not splits:
        raise DataError(f"{shown(Path(name))} has no splits and no rows: give another source")
    return next((split for split in SPLIT_ORDER if split in splits), splits[0])


def is_missing(value: Any) -> bool:
    """Whether there is nothing: None, NaN, an empty text, an empty list."""
    if value is None or (isinstance(value, float) and value != value):
        return True
    return isinstance(value, str | list | tuple | dict) and not (value.strip() if isinstance(value, str) else value)


def brief(text: str, longest: int = 80) -> str:
    """At most so many characters of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def listing(names: Sequence[str], most: int = 12) -> str:
    """Names for a message, at most a dozen."""
    shown = ", ".join(brief(str(name), 40) for name in names[:most])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown
