"""Text files to rows: JSON, JSON Lines, CSV and TSV, gzipped or not, with every value as it was written.

A file that cannot be read is told by what it really is: gzip data under another name, UTF-16, a comma too many.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halfv_data.documents import Unpacked, unpack
from halfv_data.errors import DataError, shown
from halfv_data.json_text import WrittenFloat, parse_json, read_text
from halfv_data.pictures import is_picture
from halfv_data.rows import LeftOut, Row, Source, brief, listing

LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
TEXT = (*LINES, ".json", *TABLES)


def text_suffix(name: str) -> str:
    """The suffix that says how a text file is read, without the .gz behind it; empty for files of other kinds."""
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in TEXT else ""


def read_text_file(file: Path, skip_bad: bool = False, name: str = "") -> Source:
    """All rows of one file.

    Parameters
    ----------
    file : Path
    skip_bad : bool
        Leave out lines that are no JSON objects.
    name : str
        What the file is called, where it has been downloaded under another name.

    Raises
    ------
    DataError
        With file and line, and with the cause.
    """
    called = Path(name or file)
    suffix, text = text_suffix(called.name), read_text(file, called)
    if suffix in TABLES:
        return Source(str(called), suffix[1:].upper(), list(_table(text, suffix, called)), listed=True)
    document = _document(text, called, suffix)
    left_out: list[LeftOut] = []
    if document is None:
        rows = list(_lines(text, called, left_out if skip_bad else None))
        return Source(str(called), "JSON Lines", rows, listed=True, left_out=tuple(left_out))
    unpacked = unpack(document, file)
    rows = list(_entries(unpacked, called, left_out if skip_bad else None))
    kind, notes = unpacked.kind, unpacked.notes
    return Source(str(called), kind, rows, listed=unpacked.listed, left_out=tuple(left_out), notes=notes)


def _document(text: str, file: Path, suffix: str) -> Any:
    """What a file holds that is one JSON value, whatever it is called; None where each line is one."""
    if suffix in LINES and not text.lstrip().startswith("["):
        return None
    try:
        document = json.loads(text, parse_float=WrittenFloat)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().split("\n", 1)[0]
        if suffix in LINES or (str(error).startswith("Extra data") and first.startswith("{") and _is_json(first)):
            return None
        return parse_json(text, shown(file), "mend it")
    is_rows = isinstance(document, list) and document and all(isinstance(row, dict) for row in document)
    return document if suffix not in LINES or is_rows else None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(text: str, file: Path, left_out: list[LeftOut] | None) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{shown(file)} line {number}"
        try:
            value = parse_json(line, where, "every line must be one complete JSON object")
            yield Row(where, _object(value, where), file.parent)
        except DataError:
            if left_out is None:
                raise
            left_out.append(LeftOut(where, "broken JSON"))


def _entries(unpacked: Unpacked, file: Path, left_out: list[LeftOut] | None) -> Iterator[Row]:
    for key, value in unpacked.entries:
        where = f"{shown(file)} entry {brief(str(key), 40)}"
        try:
            yield Row(where, _object(value, where), file.parent)
        except DataError:
            if left_out is None:
                raise
            left_out.append(LeftOut(where, "not an object"))


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {shown(value)} is not an object: write {{'image': ..., 'question': ...}} in JSON")
    return value


def _table(text: str, suffix: str, file: Path) -> Iterator[Row]:
    import pandas

    separator = TABLES[suffix]
    header, *others = text.split("\n", 1)
    if separator == "," and header.count(";") > header.count(","):
        separator = ";"  # as spreadsheets write it where the comma is in the numbers
    if separator == "," and header.count("\t") > header.count(","):
        separator = "\t"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # pandas would drop a column and go on
            table = pandas.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except pandas.errors.EmptyDataError:
        return
    except pandas.errors.ParserWarning as error:
        raise DataError(
            f"{shown(file)}: its rows have more fields than its first line names: a comma at the end of the rows, or a "
            "text with commas that is not quoted: mend the rows, or name the column"
        ) from error
    except (pandas.errors.ParserError, ValueError) as error:
        reason = brief(str(error).replace("Error tokenizing data. C error: ", ""))
        raise DataError(
            f"{shown(file)}: broken {suffix[1:].upper()} ({reason}): a comma too many, or a quote that is not closed"
        ) from error
    names = [str(name) for name in table.columns]
    if any(is_picture(Path(name)) for name in names):
        raise DataError(f"{shown(file)}: its first line names no columns: write image{separator}question above it")
    if len(names) == 1 and others and _looks_like_row(names[0]):
        raise DataError(f"{shown(file)} has one column, {brief(names[0])!r}: its first line must name the columns")
    _share_pictures(table)
    plain = text.rstrip("\n").count("\n") == len(table)  # no text over several lines, no line left blank
    for index, values in enumerate(table.itertuples(index=False, name=None)):
        where = f"{shown(file)} line {index + 2}" if plain else f"{shown(file)} row {index + 1}"
        yield Row(where, dict(zip(names, values, strict=True)), file.parent)


def _share_pictures(table: Any) -> None:
    """Fill in pictures that VLMEvalKit's tables write once: further rows have the index of the first instead."""
    if not {"index", "image"} <= set(table.columns):
        return
    pictures = dict(zip(table["index"], table["image"], strict=True))
    table["image"] = [pictures.get(value, value) if len(value) <= 64 else value for value in table["image"]]


def _looks_like_row(name: str) -> bool:
    return bool(re.search(r"[;|\t]", name))


def join(name: str, sources: list[Source]) -> Source:
    """Several files of one split as one source."""
    if len(sources) == 1:
        return sources[0]
    kinds = listing(list(dict.fromkeys(source.kind for source in sources)))
    rows = [row for source in sources for row in source.rows]
    left_out = tuple(out for source in sources for out in source.left_out)
    listed = all(source.listed for source in sources)
    return Source(name, f"{len(sources)} files, {kinds}", rows, listed=listed, left_out=left_out)
