"""What a user gives as data, and who reads it."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import replace
from pathlib import Path

from halfv_data.errors import DataError, shown
from halfv_data.folders import read_folder
from halfv_data.pictures import is_picture, is_video
from halfv_data.rows import Reading, Source
from halfv_data.shards import read_shards
from halfv_data.tables import BUILDERS, nothing_here, read_dataset, read_tables
from halfv_data.text_files import join, read_text_file, text_suffix

SHARD = ".tar"
EXPECTED = (
    "expected nothing (the shipped samples), a folder of images with prompts, a .jsonl, .json, .csv, .tsv, .parquet or "
    ".tar file, or a dataset name or folder that `datasets` opens"
)
ELSEWHERE = {".xlsx": "save the sheet as CSV", ".xls": "save the sheet as CSV", ".zip": "unpack it", ".gz": "unpack it"}


def read_source(source: str | Path, reading: Reading) -> Source:
    """All rows of a source.

    Raises
    ------
    DataError
        With file and line for what is broken, and with what was expected for a source that cannot be read.
    """
    if not str(source).strip():
        raise DataError(f"the source is an empty string: {EXPECTED}")
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return read_folder(path, reading)
    if path.is_file():
        return _only_split(_read_files(str(path), [path], reading), reading)
    if files := _several(str(path)):
        return _only_split(_read_files(str(source), files, reading), reading)
    known = text_suffix(path.name) or path.suffix.lower() in {*BUILDERS, SHARD, *ELSEWHERE} or is_picture(path)
    if known or path.is_absolute() or str(source)[0] in ".~":
        raise DataError(f"{nothing_here(str(path))}, {shown(path)} does not exist: {EXPECTED}")
    return read_dataset(str(source), reading)


def _read_files(name: str, files: list[Path], reading: Reading) -> Source:
    first = files[0]
    kinds = {text_suffix(file.name) or file.suffix.lower() for file in files}
    if reading.config is not None:
        raise DataError(f"{shown(first)} is one file and has no configs: leave --config out")
    if all(text_suffix(file.name) for file in files):
        return join(name, [read_text_file(file, reading.skip_bad) for file in files])
    if kinds <= set(BUILDERS) and len(kinds) == 1:
        return replace(read_tables(files, reading), name=name)
    if kinds == {SHARD}:
        return read_shards(name, files, reading.skip_bad)
    if is_picture(first) or is_video(first):
        raise DataError(f"{shown(first)} is a file of another kind, one picture: halfv run --image asks about it")
    advice = ELSEWHERE.get(first.suffix.lower())
    raise DataError(f"{shown(first)} is a file of another kind: {f'{advice}; ' if advice else ''}{EXPECTED}")


def _several(pattern: str) -> list[Path]:
    """Files by a pattern: part-*.parquet, or webdataset's shard-{000..012}.tar."""
    if found := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = found[1], found[2]
        numbers = range(int(first), min(int(last), int(first) + 100_000) + 1)
        names = [f"{pattern[: found.start()]}{n:0{len(first)}d}{pattern[found.end() :]}" for n in numbers]
        missing = [name for name in names if not Path(name).is_file()]
        if missing:
            raise DataError(f"{shown(Path(missing[0]))} does not exist, and {shown(Path(pattern))} names it: check it")
        return [Path(name) for name in names]
    return [Path(name) for name in sorted(glob.glob(pattern)) if Path(name).is_file()] if "*" in pattern else []


def _only_split(source: Source, reading: Reading) -> Source:
    """The rows of the split that was asked for, where they name theirs, as ScienceQA's and MMBench's do."""
    if reading.split is None:
        return source
    rows = source.peek(["split"]) if "split" in source.columns else []
    splits = list(dict.fromkeys(str(row["split"]) for row in rows if row["split"] is not None))
    if reading.split not in splits:
        has = f"only {', '.join(splits[:12])}" if splits else "no split at all: leave --split out"
        raise DataError(f"{shown(Path(source.name))} has no split {shown(reading.split)}, {has}")
    chosen = [row for row in source.rows if str(row.fields.get("split")) == reading.split]
    return replace(source, rows=chosen, split=reading.split)
