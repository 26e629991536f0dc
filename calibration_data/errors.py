"""The one error of this package, and how a message shows what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LONGEST = 80  # characters of somebody's input that a message repeats at most


class DataError(ValueError):
    """Samples that cannot be used; the message says what was found, where, and what to do next."""


def shown(value: Any) -> str:
    """A value as a message shows it: a path by its end, anything else by its beginning; at most 80 characters.

    >>> shown("x" * 1000)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    if isinstance(value, Path):
        text = str(value) if str(value).isprintable() else repr(str(value))[1:-1]
        return text if len(text) <= LONGEST else "..." + text[3 - LONGEST :]
    # repr of a long text is longer still, and of a nested value longer than anybody wants: cut before, where possible
    text = repr(value[:LONGEST] if isinstance(value, str | bytes) else value)
    longer = isinstance(value, str | bytes) and len(value) > LONGEST
    return text if len(text) <= LONGEST and not longer else text[: LONGEST - 3] + "..."
