"""``halfv methods``: what there is to choose from, for any ``--plan``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def methods(
    model: Annotated[
        str, typer.Option(help="Whose defaults: llava-1.5-7b, qwen2.5-vl-7b, or another name that bench knows.")
    ] = "llava-1.5-7b",
    as_json: Annotated[bool, typer.Option("--json", help="The same for programs.")] = False,
) -> None:
    """List the methods, where they act, what they need and where they come from.

    Every name is a --plan of its own, with its defaults: halfv run --plan pdrop. A layer and a budget can be given:
    fastv:2:0.25 keeps a quarter of the visual tokens from layer 2 on, visionzip::64 keeps 64 of them before the
    language model.
    """
    from halfv_accel.catalogue import catalogue
    from halfv_accel.names import architecture

    rows = catalogue(architecture(model))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("method", "where", "needs", "default plan", "source"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["where"], ", ".join(row["needs"]) or "-", row["plan"], row["source"])
    Console().print(table)
