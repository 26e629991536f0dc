"""Text as UTF-8 and JSON as it was written; what is neither is told by what it really is."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

from halfv_data.errors import DataError, shown
from halfv_data.rows import brief

OTHER_KINDS = (  # how a file begins, what it is, what to do
    (b"\x1f\x8b", "gzip data", "add .gz to its name"),
    (b"PAR1", "a Parquet file", "call it .parquet"),
    (b"PK\x03\x04", "a zip archive (as Excel's files are)", "unpack it, or save the sheet as CSV"),
    (b"BZh", "bzip2 data", "unpack it"),
    (b"\xfd7zXZ", "xz data", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer and not the file itself", "run git lfs pull"),
    (b"<!doctype html", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
)
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class WrittenFloat(float):
    """A number that remembers how it was written: 3.10 and 1e3 are answers as they stand."""

    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


def read_text(file: Path, name: Path | None = None) -> str:
    """The text of a UTF-8 file, unpacked if its name ends in .gz; ``name``, if it was downloaded under another one.

    Raises
    ------
    DataError
        If it is no such file: what it is instead, as far as its bytes tell.
    """
    try:
        raw = file.read_bytes()
        if (name or file).suffix == ".gz":
            raw = gzip.decompress(raw)
    except gzip.BadGzipFile as error:
        raise DataError(f"{shown(name or file)} is not gzip data: take .gz from its name") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{shown(name or file)} is cut off or damaged gzip data: copy or download it again") from error
    except OSError as error:
        raise DataError(f"{shown(name or file)} cannot be read ({error.strerror}): check its permissions") from error
    for start, what, advice in OTHER_KINDS:
        if raw[: len(start)].lower() == start.lower():
            raise DataError(f"{shown(name or file)} is {what}: {advice}")
    if raw.startswith(UTF16) or b"\0" in raw[:100]:
        raise DataError(
            f"{shown(name or file)} is UTF-16 or binary, not UTF-8 text: save it as UTF-8, or iconv -f UTF-16"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        letter = raw[error.start : error.start + 1].decode("latin-1")
        raise DataError(
            f"{shown(name or file)}: not UTF-8 text (byte {error.start}): save it as UTF-8 (it may be Latin-1 or "
            f"Windows-1252, where that byte is {letter!r}: iconv -f WINDOWS-1252 -t UTF-8)"
        ) from error


def parse_json(text: str, where: str, advice: str) -> Any:
    """A JSON value whose decimal numbers keep their spelling.

    Raises
    ------
    DataError
        With the cause, where it is a common one.
    """
    try:
        return json.loads(text, parse_float=WrittenFloat)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON ({_cause(text, error)}): {advice}") from error


def _cause(text: str, error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return brief(str(error))
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    place = f"line {error.lineno} column {error.colno}"
    if (before.endswith(",") and after[:1] in "]}") or re.match(r",\s*[]}]", after):
        return f"a comma too many before the closing bracket at {place}"
    if after.startswith("'"):
        return f"single quotes at {place}, where JSON has double ones"
    if not after:
        return f"it is cut off at {place}"
    return f"{error.msg} at {place}"
