"""JSON documents that the field shares, one reader a form: every one becomes plain rows.

=============================  =========================================================================
VQAv2, OK-VQA                  questions.json, joined with the annotations beside it (10 answers a question)
COCO captions                  images and annotations with a caption; also Karpathy's splits (sentences)
ScienceQA                      problems.json: {id: {question, choices, answer, hint, image, split}}
GQA, and others keyed by id    {id: {question, answer, imageId}}
TextVQA, DocVQA, ...           {"data": [...]}: one list among other fields
a table by columns             {"image": [...], "question": [...]}, as pandas writes it
=============================  =========================================================================

Fields keep the names that they have in the file; `columns` maps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from halfv_data.errors import DataError, shown
from halfv_data.json_text import parse_json, read_text
from halfv_data.rows import Names, listing

Entries = Iterable[tuple[Any, Any]]  # number or key, and row


@dataclass(frozen=True)
class Unpacked:
    """What a document holds; ``listed`` as in `rows.Source`."""

    kind: str
    entries: Entries
    listed: bool = False
    notes: tuple[str, ...] = ()


def unpack(document: Any, file: Path) -> Unpacked:
    """The rows of a JSON document.

    Raises
    ------
    DataError
        If its form is none of those above.
    """
    if isinstance(document, list):
        return Unpacked("JSON", enumerate(document, 1), listed=True)
    if not isinstance(document, dict):
        raise DataError(f"{shown(file)} holds {shown(document)}: it must be a list of objects")
    for reader in (_vqa, _coco_captions, _karpathy, _internvl, _by_columns, _by_id, _one_list):
        if (found := reader(document, file)) is not None:
            return found
    if any(not isinstance(value, dict | list) for value in document.values()):
        return Unpacked("JSON", [(1, document)], listed=True)
    raise DataError(f"{shown(file)} has {listing(list(document))}: none of these is a list of objects with questions")


def _is_rows(value: Any) -> TypeGuard[list[dict]]:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


# ----------------------------------------------------------------------------------------------------- VQAv2 and OK-VQA


def _vqa(document: dict, file: Path) -> Unpacked | None:
    """Questions in one file, ten people's answers in another."""
    questions, annotations = document.get("questions"), document.get("annotations")
    subtype = document.get("data_subtype")
    notes: tuple[str, ...] = ()
    if _is_rows(annotations) and "answers" in annotations[0] and not _is_rows(questions):
        questions = _beside(file, "question", "questions", annotations[0].get("question_id")).get("questions")
        if questions is None:
            raise DataError(f"{shown(file)} holds answers alone: put the questions file beside it, and give that one")
    if not _is_rows(questions) or "question_id" not in questions[0]:
        return None
    if not _is_rows(annotations):
        annotations = _beside(file, "annotation", "annotations", questions[0]["question_id"]).get("annotations", [])
        if not annotations:
            notes = ("no annotations file with its answers is beside it",)
    answers = {row.get("question_id"): row for row in annotations}
    rows = [{"data_subtype": subtype, **answers.get(row["question_id"], {}), **row} for row in questions]
    return Unpacked("VQA", enumerate(rows, 1), notes=notes)


def _beside(file: Path, name: str, key: str, question_id: Any) -> dict:
    """The other half of a pair: a JSON file that is called so, has this list, and speaks of this question."""
    for other in sorted(file.parent.glob(f"*{name}*.json")):
        document = parse_json(read_text(other), shown(other), "mend it") if other != file else None
        rows = document.get(key) if isinstance(document, dict) else None
        if rows is not None and _is_rows(rows) and any(row.get("question_id") == question_id for row in rows):
            return {key: rows}
    return {}


# ------------------------------------------------------------------------------------------------------------- captions


def _coco_captions(document: dict, file: Path) -> Unpacked | None:
    """One row a picture, with all of its captions."""
    images, annotations = document.get("images"), document.get("annotations")
    if not _is_rows(images) or not _is_rows(annotations):
        return None
    captions: dict[Any, list[str]] = {}
    for row in annotations:
        if isinstance(row.get("caption"), str):
            captions.setdefault(row.get("image_id"), []).append(row["caption"].strip())
    if not captions:
        raise DataError(f"{shown(file)} is in COCO's form but has no captions: give captions_*.json")
    folder = file.name.split(".")[0].rsplit("_", 1)[-1]  # captions_val2017.json: pictures are in val2017
    rows = []
    for image in images:
        name = str(image.get("file_name") or "")
        names = Names((name, f"{folder}/{name}")) if name else None
        rows.append({"image": names, "captions": captions.get(image.get("id")), "image_id": image.get("id")})
    return Unpacked("COCO captions", enumerate(rows, 1))


def _karpathy(document: dict, file: Path) -> Unpacked | None:
    """dataset_coco.json, dataset_flickr30k.json: sentences a picture, with splits inside."""
    images = document.get("images")
    if not _is_rows(images) or not _is_rows(images[0].get("sentences")):
        return None
    rows = []
    for image in images:
        name = str(image.get("filename") or "")
        names = Names((f"{image['filepath']}/{name}" if image.get("filepath") else name, name)) if name else None
        sentences = [sentence.get("raw") for sentence in image.get("sentences", [])]
        rows.append({"image": names, "captions": sentences, "split": image.get("split")})
    return Unpacked("captions in Karpathy's splits", enumerate(rows, 1))


# ---------------------------------------------------------------------------------------------------------- other forms


def _internvl(document: dict, file: Path) -> Unpacked | None:
    entries = [entry for entry in document.values() if isinstance(entry, dict)]
    lists = [entry["annotation"] for entry in entries if isinstance(entry.get("annotation"), str)]
    if not lists or len(lists) < len(document):
        return None
    root = next(iter(document.values())).get("root", "DIR")
    raise DataError(
        f"{shown(file)} lists other files: give one of them, for example --data {shown(Path(lists[0]))} "
        f"--images {shown(Path(str(root)))}"
    )


def _by_columns(document: dict, file: Path) -> Unpacked | None:
    """A table that was written column by column: lists of equal length, or pandas' {column: {index: value}}."""
    if not any(name.lower() in ("question", "prompt", "text", "query") for name in document):
        return None
    columns = [list(value.values()) if isinstance(value, dict) else value for value in document.values()]
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return None
    rows = [dict(zip(document, values, strict=True)) for values in zip(*columns, strict=True)]
    return Unpacked("JSON by columns", enumerate(rows, 1), listed=True)


def _by_id(document: dict, file: Path) -> Unpacked | None:
    if not document or not all(isinstance(row, dict) for row in document.values()):
        return None
    science = all("choices" in row and "image" in row for row in document.values())
    fields: Callable[[str, dict], dict] = _science_row if science else lambda key, row: {"id": key, **row}
    entries: Iterator[tuple[str, dict]] = ((key, fields(key, row)) for key, row in document.items())
    return Unpacked("ScienceQA" if science else "JSON by id", entries)


def _science_row(key: str, row: dict) -> dict:
    """Pictures are in folders called by id, these perhaps in folders called by split."""
    name = row["image"]
    names = Names((f"{row.get('split')}/{key}/{name}", f"{key}/{name}", str(name))) if name else None
    return {"id": key, **row, "image": names}


def _one_list(document: dict, file: Path) -> Unpacked | None:
    lists = [value for value in document.values() if _is_rows(value)]
    return Unpacked("JSON", enumerate(lists[0], 1)) if len(lists) == 1 else None
