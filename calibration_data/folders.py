"""Folders: pictures with prompts beside them, metadata files, shards, or what ``datasets`` knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from halfv_data.errors import DataError, shown
from halfv_data.json_text import read_text
from halfv_data.pictures import is_picture, is_video
from halfv_data.rows import LeftOut, Reading, Row, Source, choose_split, listing
from halfv_data.shards import read_shards
from halfv_data.tables import BUILDERS, SAVED, read_dataset, read_saved
from halfv_data.text_files import join, read_text_file, text_suffix

METADATA = ("metadata.jsonl", "metadata.csv")
SPLITS = {  # what folders of splits are called
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    "calibration": "calibration",
}
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # not data, but about it
PROMPT = ".txt"
QUESTIONS = "questions_answers_YN"  # MME keeps its prompts there, beside a folder called images


@dataclass
class _Found:
    """The files below a folder, by what they are for."""

    shown: list[Path] = field(default_factory=list)  # pictures and videos
    prompts: dict[Path, Path] = field(default_factory=dict)  # by path without suffix
    lists: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def read_folder(folder: Path, reading: Reading) -> Source:
    """The samples of a folder.

    Raises
    ------
    DataError
        If it holds nothing that can be asked about, or pictures beside a list that should be named instead.
    """
    if any((folder / marker).is_file() for marker in SAVED):
        return read_saved(folder, reading)
    found = _look(folder)
    if found.metadata:
        return _with_metadata(folder, found.metadata, reading)
    if found.shown:
        pairs = {picture: prompt for picture in found.shown if (prompt := _prompt_of(picture, found.prompts))}
        if not pairs and found.lists:
            raise DataError(
                f"{shown(folder)} holds pictures and {_names(found.lists, folder)}: give the file that has the "
                f"questions: --data {shown(found.lists[0])}"
            )
        if pairs or not found.tables:
            return _pairs(folder, found, pairs, reading)
    if found.shards and not found.tables:
        return read_shards(str(folder), found.shards, reading.skip_bad)
    if found.lists or found.tables:
        return _dataset(folder, found, reading)
    raise DataError(
        f"{shown(folder)} holds no images and no data files: put each X.png beside an X.txt with its question"
    )


def _look(folder: Path) -> _Found:
    found = _Found()
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in inside) or not file.is_file():
            continue
        if file.name in METADATA:
            found.metadata.append(file)
        elif is_picture(file) or is_video(file):
            found.shown.append(file)
        elif file.suffix.lower() == PROMPT:
            found.prompts[file.with_suffix("")] = file
        elif text_suffix(file.name) and file.name not in ABOUT:
            found.lists.append(file)
        elif file.suffix.lower() in BUILDERS:
            found.tables.append(file)
        elif file.suffix.lower() == ".tar":
            found.shards.append(file)
        else:
            found.others.append(file)
    return found


def _names(files: Sequence[Path], folder: Path) -> str:
    return listing([str(file.relative_to(folder)) for file in files], most=3)


# ------------------------------------------------------------------------------------------------ pictures with prompts


def _prompt_of(picture: Path, prompts: dict[Path, Path]) -> Path | None:
    """X.txt beside X.png, or where MME has it."""
    key = picture.with_suffix("")
    return prompts.get(key) or prompts.get(key.parent.parent / QUESTIONS / key.name)


def _pairs(folder: Path, found: _Found, pairs: dict[Path, Path], reading: Reading) -> Source:
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    for picture in found.shown:
        try:
            if picture not in pairs:
                raise DataError(
                    f"{shown(picture)} has no question: write it into {picture.stem}{PROMPT} beside it (first line; "
                    "the answer, if known, in the second), or put all into a metadata.jsonl with file_name and question"
                )
            rows += [
                Row(shown(picture), {"video" if is_video(picture) else "image": picture, **asked}, folder)
                for asked in _asked(pairs[picture])
            ]
        except DataError as error:
            if not reading.skip_bad:
                raise
            left_out.append(LeftOut(shown(picture), "no question" if picture not in pairs else str(error)))
    orphans = sorted(set(found.prompts.values()) - set(pairs.values()))
    notes = [f"{len(orphans)} {PROMPT} without a picture ({_names(orphans, folder)})"] if orphans else []
    if ignored := [*found.lists, *found.tables, *found.shards, *found.others]:
        kinds = Counter(file.suffix.lower() or file.name for file in ignored)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        notes.append(f"{len(ignored)} files that are no pictures ({counts})")
    kind = "pictures with prompts"
    return Source(str(folder), kind, rows, listed=True, left_out=tuple(left_out), notes=tuple(notes))


def _asked(prompt: Path) -> list[dict[str, str]]:
    """Questions of one picture: a line with the question and perhaps one with the answer, or MME's, both in a line."""
    lines = [line.strip() for line in read_text(prompt).splitlines()]
    filled = [line for line in lines if line]
    if not filled or not lines[0]:
        raise DataError(f"{shown(prompt)} line 1: no question: write it into the first line")
    if all("\t" in line for line in filled):
        parts = [[part.strip() for part in line.split("\t") if part.strip()] for line in filled]
        if all(len(part) == 2 for part in parts):
            return [{"question": question, "answer": answer} for question, answer in parts]
    if len(filled) > 2 or any("\t" in line for line in filled):
        raise DataError(
            f"{shown(prompt)} has {len(filled)} lines: write the question into the first and the answer into the "
            "second, or into each line one question and its answer, with a tab between them"
        )
    return [dict(zip(("question", "answer"), filled, strict=False))]


# -------------------------------------------------------------------------------------------------- metadata and tables


def _with_metadata(folder: Path, files: list[Path], reading: Reading) -> Source:
    """A folder as ``datasets``' imagefolder has it: a metadata file at its top, or one in the folder of each split."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        inside = [part.lower() for part in file.relative_to(folder).parts[:-1]]
        split = next((SPLITS[part] for part in inside if part in SPLITS), "train" if inside else "")
        by_split.setdefault(split, []).append(file)
    if list(by_split) == [""] and reading.split is None:
        split = ""
    else:
        split = choose_split(str(folder), [name for name in by_split if name], reading.split)
    sources = [read_text_file(file, reading.skip_bad) for file in by_split[split]]
    return replace(join(str(folder), sources), name=str(folder), kind="imagefolder", split=split or None)


def _dataset(folder: Path, found: _Found, reading: Reading) -> Source:
    """Data files without pictures beside them; of a VQA pair the questions, which find their annotations."""
    answers = [file for file in found.lists if "annotation" in file.name.lower()]
    questions = [file for file in found.lists if "question" in file.name.lower() and file not in answers]
    if answers and questions and not found.tables:
        if len(questions) == 1:
            return read_text_file(questions[0], reading.skip_bad)
        raise DataError(f"{shown(folder)} holds {_names(questions, folder)}: give one: --data {shown(questions[0])}")
    if len(found.lists) == 1 and not found.tables and reading.split is None and reading.config is None:
        return read_text_file(found.lists[0], reading.skip_bad)
    return read_dataset(str(folder), reading)
