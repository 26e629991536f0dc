"""Options that say how data is read, for every command that reads some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from halfv_accel.settings import DataReading
    from halfv_data import Reading

Data = Annotated[
    str,
    typer.Option(
        help="default (shipped); a folder of pictures with prompts; a .jsonl, .json, .csv, .tsv, .parquet or .tar "
        "file; or a data set name. docs/data.md lists the forms."
    ),
]
ColumnNames = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="Which column is what, instead of a guess: question=text,answer=label. Also image, video, choices, hint, "
        "task, conversation; columns are joined by + (image=left+right).",
        show_default=False,
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        "--images", help="Folder where the pictures' paths start, if not beside the list.", show_default=False
    ),
]
Config = Annotated[str | None, typer.Option("--config", help="Of a data set with several.", show_default=False)]
Split = Annotated[
    str | None, typer.Option("--split", help="Of a data set with several; validation before test before train.")
]
Turns = Annotated[
    Literal["first", "all"], typer.Option("--turns", help="Which questions of a conversation; each is asked by itself.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out samples that cannot be used.")]
SHIPPED = 100  # the default source never ends; these are its files


def everything(source: str) -> int:
    """How many samples to ask for where all are wanted."""
    return SHIPPED if source == "default" else 10**9


def reading(
    columns: str | None = None,
    images: Path | None = None,
    config: str | None = None,
    split: str | None = None,
    turns: str = "first",
    skip_bad: bool = False,
) -> Reading:
    """The options as the loader takes them.

    Raises
    ------
    DataError
        If --columns is not of the form role=name,role=name, or --images is no folder.
    """
    from halfv_data import DataError, Reading

    pairs: dict[str, str] = {}
    for pair in columns.split(",") if columns else []:
        role, equals, name = pair.partition("=")
        if not equals or not role.strip():
            raise DataError(
                f"--columns has {pair[:80]!r}: write role=name,role=name, for example question=text,answer=label"
            )
        pairs[role.strip()] = name.strip()
    folder = None if images is None else images.expanduser()
    if folder is not None and not folder.is_dir():
        raise DataError(
            f"--images is {str(folder)[-80:]}, and there is no such folder: name the one where the pictures are"
        )
    return Reading(pairs, folder, config, split, "all" if turns == "all" else "first", skip_bad)


def told(how: Reading) -> DataReading | None:
    """For the profile: how data was read, if anything was asked for."""
    from halfv_accel.settings import DataReading
    from halfv_data import Reading

    images = None if how.images is None else str(how.images.resolve())
    return None if how == Reading() else DataReading(**{**vars(how), "images": images})


def again(told: DataReading | None) -> Reading:
    """The same reading, from a profile."""
    from halfv_data import Reading

    if told is None:
        return Reading()
    return Reading(**{**dict(told), "images": None if told.images is None else Path(told.images)})
