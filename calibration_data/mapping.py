"""From a row and its columns to samples: pictures found, questions asked as the benchmark asks them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from halfv_data.choices import ABSENT, ask, no_options, options_of, right_option
from halfv_data.columns import CAPTION, NAMES, Columns, get
from halfv_data.conversations import Turn, as_turns, turns_of, without_placeholders
from halfv_data.errors import DataError, shown
from halfv_data.pictures import VIDEOS, Picture, Video
from halfv_data.rows import Names, Reading, Row, Unusable, is_missing, listing
from halfv_data.samples import UNLABELLED, Sample
from halfv_data.values import as_text, read_answer

HINT = "check the path (relative paths start at the list; --images DIR names another folder)"
LONGEST_PATH = 1024  # characters; a longer text is a picture itself, as base64
PICTURE_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".mp4")  # of files that are named by an id
COCO_FOLDERS = ("val2014", "train2014", "test2015", "val2017", "train2017", "test2017")


def samples_of(row: Row, columns: Columns, reading: Reading, listed: bool = True) -> list[Sample]:
    """The samples of a row: one, or with ``turns="all"`` one for each question of a conversation.

    In a data set that nobody ``listed`` as samples, task and objects may be something else than ours.

    Raises
    ------
    Unusable
        If the row has no picture or no question.
    DataError
        If what it has cannot be used.
    """
    task, objects = _about(row, columns, listed)
    turns = list(_turns(row, columns))
    pictures, videos = _shown_beside(row, columns, reading)
    samples = []
    for turn in turns if reading.turns == "all" else turns[:1]:
        own = [_picture(value, row, reading) for value in turn.pictures] or pictures[: turn.places or None]
        clips = [_video(value, row, reading) for value in turn.videos] or videos
        if not own and not clips:
            raise _no_picture(row, columns)
        if len(clips) > 1:
            raise DataError(f"{row.where}: {len(clips)} videos: a sample has one at most")
        question, answer = turn.question.strip(), turn.answer
        video = clips[0] if clips else None
        samples.append(Sample(tuple(own), question, answer, task or UNLABELLED, objects, video, row.where))
    return samples


# ------------------------------------------------------------------------------------------------------------ questions


def _turns(row: Row, columns: Columns) -> Iterator[Turn]:
    for name in columns.conversation:
        if (said := as_turns(get(row.fields, name))) is not None:
            said += (as_turns(row.fields.get("completion")) or []) if name == "prompt" else []
            turns = [turn for turn in turns_of(said, row.where) if turn.question]
            if not turns:
                raise Unusable(row.where, "no question", "a conversation needs a turn by human or user", natural=True)
            if "answer" in columns.given:
                turns[0].answer = read_answer(columns.first("answer", row.fields)[1], row.where)
            yield from turns
            return
    history = row.fields.get("history")  # ms-swift: what was said before
    for pair in history if isinstance(history, list) else []:
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            yield Turn(without_placeholders(pair[0]), pair[1])
    yield _one_turn(row, columns)


def _one_turn(row: Row, columns: Columns) -> Turn:
    """The question and the answer of a row; a multiple choice with its options."""
    name, question = columns.first("question", row.fields)
    if columns.captions:
        question = CAPTION
    elif question is None:
        question = _missing_question(row, columns)
    if not isinstance(question, str):
        raise DataError(f"{row.where}: the question is {shown(question)}: it must be a text that is not empty")
    question = without_placeholders(question, everywhere=False)
    if name.lower() == "instruction" and isinstance(more := row.fields.get("input"), str) and more.strip():
        question = f"{question}\n{without_placeholders(more, everywhere=False)}"  # Alpaca
    label = columns.first("answer", row.fields)[1]
    written = [get(row.fields, name) for name in columns.choices]
    options = options_of(written) if written else []
    if not options and len(written) == 1 and not no_options(written[0]):
        raise Unusable(
            row.where, "options that cannot be told apart", f"they are {shown(written[0])}: make them a list"
        )
    hint = columns.first("hint", row.fields)[1] if columns.choices or "hint" in columns.given else None
    hint = str(hint).strip() if hint is not None and str(hint).lower() != ABSENT else None
    if not options:
        return Turn(f"{hint}\n{question}" if hint else question, read_answer(label, row.where))
    return Turn(ask(question, options, hint), _letter(label, options, row, columns))


def _letter(label: Any, options: list[str], row: Row, columns: Columns) -> str | None:
    if label is None or str(label).lower() == ABSENT:
        return None
    letter = right_option(label, options, columns.labels)
    for form in ("letter", "text") if letter is None else ():
        letter = letter or right_option(label, options, form)
    if letter is None:
        advice = f"it is {shown(as_text(label))} of {len(options)} options: mend it, or name another column"
        raise Unusable(row.where, "the answer is none of the options", advice)
    return letter


def _missing_question(row: Row, columns: Columns) -> Any:
    """An error for a row without question, that shows an empty one."""
    for name in columns.question:
        if isinstance(value := get(row.fields, name), str):
            raise Unusable(row.where, "no question", f"the question is {value!r}: it must be a text that is not empty")
    others = ", ".join(columns.question if "question" in columns.given else NAMES["question"][1:])
    has = listing(list(row.fields)) or "no fields"
    advice = f"it has {has}: add question, or --columns question=NAME"
    raise Unusable(row.where, f"no question (nor {others})", advice, natural=bool(columns.conversation))


def _about(row: Row, columns: Columns, listed: bool) -> tuple[str | None, list[dict]]:
    """Task and drawn things."""
    task = columns.first("task", row.fields)[1]
    if not listed:
        return (None if task is None else as_text(task)), []
    if task is not None and not isinstance(task, str):
        raise DataError(f"{row.where}: the task is {shown(task)}: it must be a text, or be left out")
    return task, _objects(row)


def _objects(row: Row) -> list[dict]:
    """The drawn things; metadata.jsonl holds them as JSON in a string, because their fields differ."""
    objects = row.fields.get("objects") or []
    if isinstance(objects, str):
        try:
            objects = json.loads(objects)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{row.where}: objects is broken JSON ({error}): mend it or leave objects out") from error
    if not isinstance(objects, list) or not all(isinstance(thing, dict) for thing in objects):
        raise DataError(f"{row.where}: objects is {shown(objects)}: it must be a list of objects, or be left out")
    return objects


# ------------------------------------------------------------------------------------------------------------- pictures


def _shown_beside(row: Row, columns: Columns, reading: Reading) -> tuple[list[Picture], list[Video]]:
    """Pictures and videos in columns of their own."""
    pictures: list[Picture] = []
    for group in columns.image:
        values = [value for name in group for value in _several(get(row.fields, name))]
        if values:
            pictures = [_picture(value, row, reading) for value in values]
            break
    _, value = columns.first("video", row.fields)
    videos = [_video(one, row, reading) for one in _clips(value)]
    if not pictures and not videos and (named := _named_by_id(row, columns)):
        place = _place(named, row, reading)
        if isinstance(place, Path) and place.suffix == ".mp4":
            videos = [_video(place, row, reading)]
        elif isinstance(place, Path) or not columns.conversation:
            pictures = [_picture(named, row, reading)]
    return pictures, videos


def _several(value: Any) -> list[Any]:
    """The pictures of a field: one, or a list, which a table holds as a text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            value = json.loads(value.replace("'", '"'))
    values = list(value) if isinstance(value, list | tuple) and not isinstance(value, Names) else [value]
    return [one for one in values if not is_missing(one)]


def _clips(value: Any) -> list[Any]:
    """The videos of a field; a list of pictures is one video of these frames."""
    if value is None or isinstance(value, str | Mapping | Path):
        return [] if value is None else [value]
    if isinstance(value, list | tuple) and value and all(str(one).lower().endswith(VIDEOS) for one in value):
        return list(value)
    return [value]


def _named_by_id(row: Row, columns: Columns) -> Names | None:
    """Files that a picture's id may name: GQA's 123.jpg, COCO's COCO_val2014_000000000123.jpg."""
    value = columns.first("image_id", row.fields)[1]
    if value is None:
        return None
    key = as_text(value)
    names = [key + suffix for suffix in PICTURE_SUFFIXES]
    if key.isdigit():
        split = row.fields.get("data_subtype")
        folders = [split.replace("test-dev", "test")] if isinstance(split, str) else list(COCO_FOLDERS)
        numbered = [(folder, f"{int(key):012d}.jpg") for folder in folders]
        names += [f"{folder}/COCO_{folder}_{file}" for folder, file in numbered]
        names += [f"COCO_{folder}_{file}" for folder, file in numbered]
        names += [name for folder, file in numbered for name in (f"{folder}/{file}", file)]
        names = names[len(PICTURE_SUFFIXES) :] + names[: len(PICTURE_SUFFIXES)] if isinstance(split, str) else names
    return Names(names)


def _no_picture(row: Row, columns: Columns) -> Unusable:
    natural = any(as_turns(get(row.fields, name)) is not None for name in columns.conversation)
    has = listing(list(row.fields)) or "no fields"
    return Unusable(
        row.where, f"no image (nor {', '.join(NAMES['image'][1:6])})", f"it has {has}: add image", natural=natural
    )


def _picture(value: Any, row: Row, reading: Reading) -> Picture:
    place = _place(value, row, reading)
    return Picture.of(place, row.where, Path() if isinstance(place, Path) else _start(row, reading), _hint(reading))


def _video(value: Any, row: Row, reading: Reading) -> Video:
    if callable(value) or (isinstance(value, Mapping) and value.get("bytes") is not None):
        raise DataError(f"{row.where}: its video is inside of the table or shard: save it as a file and give its path")
    place = _place(value, row, reading)
    return Video.of(place, row.where, Path() if isinstance(place, Path) else _start(row, reading), _hint(reading))


def _start(row: Row, reading: Reading) -> Path:
    return row.folder if reading.images is None else reading.images


def _hint(reading: Reading) -> str:
    return HINT if reading.images is None else f"check the path (relative paths start at {shown(reading.images)})"


def _place(value: Any, row: Row, reading: Reading) -> Any:
    """The file that a relative path means, or the value as it is.

    A path is sought in the folder of pictures, then without its first parts: a list that says coco/train2017/1.jpg is
    used with the folder coco, with coco/train2017, or with the one that holds coco.
    """
    if isinstance(value, Mapping) and is_missing(value.get("bytes")) and isinstance(value.get("path"), str):
        value = value["path"]
    if isinstance(value, Mapping) and isinstance(value.get("url"), str):
        value = value["url"]
    names = value if isinstance(value, Names) else (value,)
    for name in names:
        if not isinstance(name, str) or len(name) > LONGEST_PATH or "://" in name or name.startswith("data:"):
            continue
        path = Path(os.path.expanduser(name if "\\" not in name else name.replace("\\", "/")))
        tails = [Path(*path.parts[skipped:]) for skipped in range(len(path.parts))] if reading.images else [path]
        for start in (_start(row, reading), row.folder / "images"):
            for tail in tails:
                if _is_file(start / tail):
                    return start / tail
    return names[0] if isinstance(value, Names) else value


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero in it: no path
        return False
