"""What a long command shows while it works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID

SILENT_SECONDS = 30  # longer than this a step that nobody sees on a terminal says nothing


@contextmanager
def progress(unit: str = "samples") -> Iterator[Callable[[str, int, int], None]]:
    """One bar a step, or where nobody watches a terminal lines on stderr; yields ``show(step, done, total)``."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(unit)
        return
    columns = (TextColumn("{task.description:>18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars_:
        bars: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = bars_.add_task(step, total=total)
            bars_.update(bars[step], completed=done)

        yield show


def _lines(unit: str) -> Callable[[str, int, int], None]:
    """A line when a step ends, and every half minute of a long one: how many, and its seconds."""
    begun: dict[str, float] = {}
    told: dict[str, float] = {}

    def show(step: str, done: int, total: int) -> None:
        now = time.perf_counter()
        started = begun.setdefault(step, now)
        if done == total or now - told.setdefault(step, now) >= SILENT_SECONDS:
            told[step] = now
            count = f"{total}" if done == total else f"{done} of {total}"
            typer.echo(f"{step}: {count} {unit}, {now - started:.1f} s", err=True)

    return show
