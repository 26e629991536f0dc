"""Samples as a folder: pictures as they were encoded, and a metadata.jsonl that names them.

It is what ``datasets`` calls an imagefolder where every sample has one picture; further pictures are in ``images``.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from halfv_data.errors import DataError, shown
from halfv_data.pictures import Picture, Video
from halfv_data.samples import UNLABELLED, Sample

METADATA = "metadata.jsonl"
PICTURES = "pictures"


def check_empty(folder: Path) -> None:
    """Refuse a folder that something is in already.

    Raises
    ------
    DataError
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{shown(folder)} exists and is not empty: name a new folder")


def export(samples: Sequence[Sample], folder: Path) -> Path:
    """Write samples into an empty folder; return its list.

    Raises
    ------
    DataError
        If the folder is not empty, or a picture cannot be read.
    """
    check_empty(folder)
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    lines = [json.dumps(_fields(sample, folder, written), ensure_ascii=False) for sample in samples]
    (folder / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / METADATA


def _fields(sample: Sample, folder: Path, written: dict[str, str]) -> dict[str, Any]:
    names = [_write(picture, folder, written) for picture in sample.pictures]
    fields: dict[str, Any] = {"file_name": names[0]} if len(names) == 1 else {"images": names} if names else {}
    if sample.video is not None:
        fields["video"] = _write_video(sample.video, folder, written)
    fields |= {"question": sample.question, "answer": sample.answer}
    if sample.task != UNLABELLED:
        fields["task"] = sample.task
    if sample.objects:
        fields["objects"] = json.dumps(sample.objects)
    return fields


def _write(picture: Picture, folder: Path, written: dict[str, str]) -> str:
    """Name of a picture's file; one that several samples share is written once."""
    encoded, suffix = _encoded(picture)
    return _store(encoded, suffix, folder, written)


def _store(encoded: bytes, suffix: str, folder: Path, written: dict[str, str]) -> str:
    digest = hashlib.sha256(encoded).hexdigest()
    if digest not in written:
        written[digest] = f"{PICTURES}/{len(written):06d}{suffix}"
        (folder / written[digest]).write_bytes(encoded)
    return written[digest]


def _encoded(picture: Picture) -> tuple[bytes, str]:
    """The file of a picture and its suffix."""
    source = picture.source
    if callable(source):
        return _encoded(Picture.of(source(), picture.where, picture.folder))
    if isinstance(source, Path):
        return source.read_bytes(), source.suffix.lower()
    if isinstance(source, bytes):
        return source, _suffix(source)
    file = io.BytesIO()
    source.save(file, "PNG")
    return file.getvalue(), ".png"


def _suffix(encoded: bytes) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        kind = (image.format or "PNG").lower()
    return {"jpeg": ".jpg", "mpo": ".jpg", "jpeg2000": ".jp2", "tiff": ".tif"}.get(kind, f".{kind}")


def _write_video(video: Video, folder: Path, written: dict[str, str]) -> Any:
    """Name of a video's file, or of the files of its frames."""
    if not isinstance(video.source, Path):
        return [_write(frame, folder, written) for frame in video.source]
    key = str(video.source.resolve())
    if key not in written:
        written[key] = f"{PICTURES}/{len(written):06d}{video.source.suffix.lower()}"
        shutil.copyfile(video.source, folder / written[key])
    return written[key]
