"""A comparison as files: every reply, every table, a page to read and a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from halfv_accel import HalfVError
from halfv_accel.files import check_writable, write_atomically
from halfv_probe.compare.frontier import plot_frontier
from halfv_probe.compare.page import Match, Row, markdown, rows
from halfv_probe.compare.resampling import DRAWS
from halfv_probe.compare.scores import typed
from halfv_probe.compare.verdicts import Verdicts, judge
from halfv_probe.views.tables import csv

FILES = ("results.csv", "results.json", "report.md", "tasks.csv", "frontier.png")


def write(
    results: pd.DataFrame,
    failures: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
    out: Path | str,
    match: Match,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Row]:
    """Judge the results and write everything into a folder, which is made if need be.

    Parameters
    ----------
    results : DataFrame
        One row a sample and entrant, columns as `scores.TYPES`; its order is kept.
    failures : sequence of (str, str)
        Entrants that did not run, and why.
    provenance : mapping
        Where the figures come from.
    out : path
        For results.csv (and results.parquet where pyarrow is installed), results.json, report.md, tasks.csv,
        frontier.png and frontier.csv.
    match : {"tokens", "flops"}
        What budgets were matched on.
    seed, draws : int
        Of the bootstrap.

    Returns
    -------
    list of dict
        The main table for a terminal: header to cell.

    Raises
    ------
    HalfVError
        If a file cannot be written; found before the work begins.
    ValueError
        If columns are missing, an entrant has two rows of one sample, or none has a row for every sample.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HalfVError(f"{out} cannot be made a folder ({error.strerror}): choose another one with --out") from error
    for name in FILES:
        check_writable(out / name)
    results = typed(results)
    verdicts = judge(results, seed, draws)
    failures = [*failures, *verdicts.left_out]
    write_atomically(out / "results.csv", csv(results).encode())
    if find_spec("pyarrow"):
        content = io.BytesIO()
        results.to_parquet(content, index=False)
        write_atomically(out / "results.parquet", content.getvalue())
    write_atomically(out / "tasks.csv", csv(verdicts.tasks).encode())
    document = {"provenance": dict(provenance), "match": match, **tables(verdicts), "failures": _failed(failures)}
    write_atomically(out / "results.json", (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
    plot_frontier(verdicts, out / "frontier.png")
    write_atomically(out / "report.md", markdown(verdicts, failures, provenance, match).encode())
    return rows(verdicts)


def tables(verdicts: Verdicts) -> dict[str, Any]:
    """All tables as JSON has them: lists of rows, null for what is missing."""
    settings = {name: getattr(verdicts, name) for name in ("measure", "samples", "unlabelled", "draws", "level", "seed")}
    found = {name: records(getattr(verdicts, name)) for name in ("overall", "tasks", "hard", "yes_no")}
    return settings | found


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain Python values; None for what is missing."""
    return [
        {name: None if pd.isna(value) else _plain(value) for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _failed(failures: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"entrant": name, "reason": reason} for name, reason in failures]
