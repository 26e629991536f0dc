"""What was loaded, and one line that says all of it."""

from __future__ import annotations

from collections import Counter
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
        parts += [*self._roles(), f"{self.answers} of {self.samples} have an answer", *self.notes]
        return f"{shown(Path(self.source))} ({', '.join(filter(None, place))}): " + "; ".join(parts)

    def _left_out(self) -> str:
        if not self.left_out:
            return ", none left out"
        counts = Counter(out.reason for out in self.left_out)
        first = {out.reason: out.where for out in reversed(self.left_out)}
        reasons = [
            f"{brief(reason, 100)} ({count}, first {first[reason].removeprefix(self.source).strip() or first[reason]})"
            for reason, count in counts.most_common(3)
        ]
        more = f", and {len(counts) - 3} other reasons" if len(counts) > 3 else ""
        return f", {len(self.left_out)} left out: {', '.join(reasons)}{more}"

    def _roles(self) -> list[str]:
        """Which column is what."""
        columns = self.columns
        talk = columns.conversation[:1]
        roles = [
            ("pictures", columns.image[0] if columns.image else columns.image_id[:1] or columns.video[:1] or talk),
            ("question", talk or columns.question[:1]),
            ("choices", columns.choices),
            ("answer", talk or columns.answer[:1]),
        ]
        lines = [f"{role} {'+'.join(names)}" for role, names in roles if names]
        if columns.captions:
            lines.insert(1, f"question {CAPTION!r}, because there are captions")
        if not roles[3][1]:
            lines.append("no column is the answer")
        return [", ".join(lines)]


@dataclass(frozen=True)
class Loaded:
    """Samples, and the line that says where they come from."""

    samples: list[Sample]
    summary: Summary
