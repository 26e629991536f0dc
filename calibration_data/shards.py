"""webdataset's tar shards: files that share a name up to its first dot are one sample, their suffixes its fields.

Only the index of a shard and its texts are read; pictures stay in the tar file until they are asked for.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from halfv_data.errors import DataError, shown
from halfv_data.json_text import parse_json
from halfv_data.pictures import is_picture
from halfv_data.rows import LeftOut, Row, Source

TEXTS = ("txt", "text", "caption", "question", "answer", "cls", "label")
_KEY = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")


def read_shards(name: str, files: Sequence[Path], skip_bad: bool) -> Source:
    """Rows of tar shards: the fields of each sample's JSON, and one field for each other file.

    Raises
    ------
    DataError
        If a file is no tar archive, or a JSON in it is broken.
    """
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    pictures: dict[str, None] = {}
    for file in files:
        for key, members in _samples(file).items():
            where = f"{shown(file)} {key[-40:]}"
            try:
                rows.append(Row(where, _fields(file, members, where, pictures), file.parent))
            except DataError:
                if not skip_bad:
                    raise
                left_out.append(LeftOut(where, "broken JSON"))
    return Source(name, "webdataset", rows, pictures=tuple(pictures), left_out=tuple(left_out))


def _samples(file: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Members of a shard by sample and suffix."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                found = _KEY.fullmatch(member.name)
                if member.isfile() and found and not Path(member.name).name.startswith("."):
                    samples.setdefault(found[1], {})[found[2].lower()] = member
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shown(file)} is no whole tar archive ({error}): download or pack it again") from error
    return samples


def _fields(file: Path, members: dict[str, tarfile.TarInfo], where: str, pictures: dict[str, None]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for suffix, member in members.items():
        read = partial(_read, file, member.offset_data, member.size)
        last = suffix.rsplit(".", 1)[-1]
        if last in ("json", "jsn"):
            value = parse_json(read().decode("utf-8", "replace"), where, "mend it")
            fields |= value if isinstance(value, dict) else {suffix: value}
        elif last in TEXTS:
            fields[suffix] = read().decode("utf-8", "replace").strip()
        elif is_picture(Path(f"x.{last}")):
            fields[suffix] = read
            pictures[suffix] = None
        else:
            fields[suffix] = read
    return fields


def _read(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as shard:
        shard.seek(offset)
        return shard.read(size)
