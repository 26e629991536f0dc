"""``halfv data``: what would be used of some data, and the same as pictures with one list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfv_cli.data_options import ColumnNames, Config, Data, Images, SkipBad, Split, Turns, everything, reading

if TYPE_CHECKING:
    from halfv_data import Sample

USUAL = 100  # as many as calibrate takes
LINE = 100  # characters of a text that are shown


def data(
    data: Data = "default",
    samples: Annotated[
        int | None, typer.Option(min=1, help="How many; 100, or with --out all.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Which samples are drawn when there are more.")] = 0,
    columns: ColumnNames = None,
    images: Images = None,
    config: Config = None,
    split: Split = None,
    turns: Turns = "first",
    skip_bad: SkipBad = False,
    show: Annotated[int, typer.Option(min=0, help="How many samples are printed.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Write pictures and metadata.jsonl there.", show_default=False)
    ] = None,
) -> None:
    """Say what would be used of some data; with --out, write it as a folder that every command takes."""
    from halfv_data import load_data
    from halfv_data.export import check_empty, export

    how = reading(columns, images, config, split, turns, skip_bad)
    if out is not None:
        out = out.expanduser()
        check_empty(out)
    many = samples or (USUAL if out is None else everything(data))
    loaded = load_data(data, many, seed, how)
    typer.echo(str(loaded.summary))
    for sample in loaded.samples[:show]:
        for line in _lines(sample):
            typer.echo(line)
    if out is not None:
        file = export(loaded.samples, out)
        typer.echo(f"wrote {len(loaded.samples)} samples; next: halfv calibrate --data {file.parent}")


def _lines(sample: Sample) -> Iterator[str]:
    """A sample for a person to look at."""
    sizes = [f"{image.width} x {image.height}" for image in sample.images]
    shown = [f"{len(sizes)} picture{'s' * (len(sizes) > 1)} ({', '.join(sizes[:4])})"] if sizes else []
    shown += ["a video"] if sample.video is not None else []
    yield ""
    yield f"{sample.where or 'drawn'}: {', '.join(shown)}"
    for number, line in enumerate(sample.question.split("\n")):
        yield f"{'  question: ' if not number else '            '}{_short(line)}"
    yield f"  answer:   {'not known' if sample.answer is None else _short(sample.answer)}"


def _short(text: str) -> str:
    return text if len(text) <= LINE else text[: LINE - 3] + "..."
