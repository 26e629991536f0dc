"""Samples that a command measures on: what the model's processor cannot take is said before the first step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from halfv_cli.progress import progress

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from halfv_data import Sample
    from halfv_data.summary import Loaded

REASONS_TOLD = 10


def usable_samples(processor: ProcessorMixin, loaded: Loaded, skip_bad: bool) -> list[Sample]:
    """The samples that the model's processor takes; of the others one line is said, or with --skip-bad their number."""
    from halfv_probe.trials.prompts import check_samples

    with progress() as show:
        usable, refusals = check_samples(processor, loaded.samples, show if sys.stderr.isatty() else _unseen)
    found = len(loaded.samples)
    bad = [str(out) for out in loaded.summary.left_out if out.bad]
    _tell_bad(bad, found + len(bad), skip_bad)
    _tell_bad(refusals, found, skip_bad)
    return usable


def told_first(line: str, show: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """``show``, with a line on stderr before its first step: where nothing is measured, only the error is told."""
    untold = [line]

    def telling(step: str, done: int, total: int) -> None:
        if untold and done:
            typer.echo(untold.pop(), err=True)
        show(step, done, total)

    return telling


def _tell_bad(reasons: list[str], found: int, skip_bad: bool) -> None:
    """Say which samples cannot be used; stop there, unless they are to be left out and others remain."""
    from halfv_accel import HalfVError

    if not reasons:
        return
    if len(reasons) == found:
        raise HalfVError(f"none of {found} samples can be used; the first: {reasons[0]}")
    if not skip_bad:
        raise HalfVError(f"{reasons[0]} ({len(reasons)} of {found} samples cannot be used; --skip-bad leaves them out)")
    for reason in reasons[:REASONS_TOLD]:
        typer.echo(f"left out: {reason}", err=True)
    typer.echo(f"{len(reasons)} of {found} samples cannot be used and are left out", err=True)


def _unseen(step: str, done: int, total: int) -> None:
    """No line for the check: where it finds something, that one line is all there is to say."""
