"""What was loaded, and one line that says all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from halfv_data.columns import CAPTION, Columns
from halfv_data.errors import shown
from halfv_data.rows import LeftOut, brief
from halfv_data.samples import Sample


@dataclass(frozen=True)
class Summary:
    """Where samples come from and what became of the rows.

    ``rows`` are all rows of the source, ``seen`` those that were looked at: of a data set, as many as were needed.
    """

    source: str
    kind: str
    rows: int
    seen: int
    columns: Columns
    used: Mapping[str, tuple[str, ...]]  # columns by role, those that rows have
    samples: int
    answers: int
    left_out: tuple[LeftOut, ...] = ()
    config: str | None = None
    split: str | None = None
    notes: tuple[str, ...] = ()
    drawn: int = 0  # scenes that were drawn to fill up the shipped ones

    def __str__(self) -> str:
        """One line."""
        place = [self.kind, f"config {self.config}" if self.config else "", f"split {self.split}" if self.split else ""]
        seen = "" if self.seen == self.rows else f", {self.seen} looked at"
        parts = [f"{self.rows} rows{seen}, {self.samples} samples" + self._left_out()]
        if self.drawn:
            parts[0] += f" ({self.drawn} of them drawn anew)"
        parts += [*self._roles(), f"{self.answers or 'none'} of {self.samples} have an answer", *self.notes]
        return f"{shown(Path(self.source))} ({', '.join(filter(None, place))}): " + "; ".join(parts)

    def _left_out(self) -> str:
        if not self.left_out:
            return ", none left out"
        counts = Counter(out.reason for out in self.left_out)
        first = {out.reason: out.where for out in reversed(self.left_out)}
        reasons = [
            f"{brief(reason, 100)} ({count}, first {self._within(first[reason])})"
            for reason, count in counts.most_common(3)
        ]
        more = f", and {len(counts) - 3} other reasons" if len(counts) > 3 else ""
        return f", {len(self.left_out)} left out: {', '.join(reasons)}{more}"

    def _within(self, where: str) -> str:
        """A place inside of the source, whose name begins the line; long names begin places in short."""
        inside = where.removeprefix(self.source).removeprefix(shown(Path(self.source))).strip()
        return inside or where

    def _roles(self) -> list[str]:
        """Which column is what, in the form that ``--columns`` takes."""
        columns = self.columns
        roles = {"image": columns.image[0] if columns.image else columns.image_id, "video": columns.video, **self.used}
        roles["choices"] = columns.choices
        if not roles["choices"]:
            roles.pop("hint", None)
        names = [f"{role}={'+'.join(found)}" for role, found in roles.items() if found]
        lines = [f"columns {', '.join(names)}"]
        if columns.captions:
            lines.append(f"asked is {CAPTION!r}, because there are captions")
        return lines


@dataclass(frozen=True)
class Loaded:
    """Samples, and the line that says where they come from."""

    samples: list[Sample]
    summary: Summary
