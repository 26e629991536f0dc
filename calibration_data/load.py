"""Samples from files: the shipped set, a folder, a JSON Lines file, or anything that ``datasets`` opens.

Every source becomes a list of rows, and a row knows where it came from, so that an error can name file and line. Text
rows are checked when the source is read, rows of a dataset when they are chosen. The pictures of the chosen rows are
decoded in full, one after the other, because a picture that is cut off shows itself only at its last pixel; what is
kept is the file.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from halfv_data.errors import DataError, shown
from halfv_data.pictures import Picture, is_picture
from halfv_data.samples import UNLABELLED, Sample, scenes

DEFAULT = Path(__file__).parent / "default"
METADATA = "metadata.jsonl"
SHIPPED_SEED = 0
TABLES = {".parquet": "parquet", ".json": "json", ".csv": "csv", ".arrow": "arrow"}  # suffix: builder in ``datasets``
SPLIT_ORDER = ("calibration", "validation", "val", "test", "train")
IMAGE = ("image", "file_name", "images", "img", "image_path", "picture")
QUESTION = ("question", "prompt", "text", "query", "instruction")
ANSWER = ("answer", "answers", "multiple_choice_answer", "label_text", "response")
PROBE_SECONDS = 10
EXPECTED = (
    "expected nothing (the shipped samples), a folder of images with prompts, a .jsonl file with image and question, "
    "or a dataset name or folder that `datasets` opens"
)


@dataclass(frozen=True)
class _Row:
    where: str  # "samples.jsonl line 7"
    picture: Picture
    question: str
    answer: str | None
    task: str
    objects: list[dict]

    def sample(self) -> Sample:
        return Sample((self.picture,), self.question, self.answer, self.task, self.objects, where=self.where)


def load_samples(
    source: str | Path | None = None, n: int = 100, seed: int = 0, left_out: list[DataError] | None = None
) -> list[Sample]:
    """Load up to n samples, in the order of the source.

    Parameters
    ----------
    source : str or Path, optional
        None or "default": the shipped set, and behind it more scenes of the same stream.
        A folder: images beside a metadata.jsonl (file_name, question, ...), or each
        X.png beside an X.txt with the question in the first line and perhaps the answer in the second. A .jsonl file:
        rows with image (path, relative to the file), question, and perhaps answer and task. Otherwise what
        ``datasets.load_dataset`` opens, with columns image, question (or prompt, text), answer (or answers).
    n : int
        Fewer come back if the source has fewer (the shipped one never does); from more, n are drawn.
    seed : int
        Decides which ones are drawn.
    left_out : list, optional
        Where it is given, a chosen row that cannot be used is left out, and why is appended to it.

    Returns
    -------
    list of Sample
        Each keeps its files, and decodes them as RGB when it is asked for them.

    Raises
    ------
    DataError
        With file and line for a bad row, and with what was expected for a source that cannot be read.
    """
    if n <= 0:
        raise DataError(f"{n} samples asked for: ask for at least 1")
    rows = _read(source)
    if not rows:
        raise DataError(f"{source} holds no samples: {EXPECTED}")
    rng = random.Random(f"halfv/subset/{seed}")
    drawn = sorted(range(len(rows)), key=lambda _: rng.random())[:n]
    more = islice(scenes(n, SHIPPED_SEED), len(rows), None) if source is None or source == "default" else ()
    chosen = (found for i in sorted(drawn) if (found := _checked(rows[i], left_out)))
    return [*chosen, *more]


def _checked(row: Callable[[], Sample], left_out: list[DataError] | None) -> Sample | None:
    """The sample, once its pictures have been decoded, because one that is cut off shows itself only at its end."""
    try:
        sample = row()
        sample.fingerprint  # noqa: B018, decodes them and remembers what it saw
        return sample
    except DataError as error:
        if left_out is None:
            raise
        left_out.append(error)
        return None


def shipped_question() -> tuple[Path, str]:
    """Path of the first shipped picture and the question about it: something to try a model on."""
    first = json.loads(_read_text(_shipped()).split("\n", 1)[0])
    return DEFAULT / first["file_name"], first["question"]


def _shipped() -> Path:
    if not (DEFAULT / METADATA).is_file():
        raise DataError(f"the shipped samples are missing from {DEFAULT}: draw them, python -m halfv_data.ship")
    return DEFAULT / METADATA


def _read(source: str | Path | None) -> list[Callable[[], Sample]]:
    if source is None or source == "default":
        return _from_lines(_shipped())
    if not str(source).strip():
        raise DataError(f"the source is an empty string: {EXPECTED}")
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".jsonl" and path.is_file():
        return _from_lines(path)
    if path.suffix in TABLES and path.is_file():
        return _from_dataset(str(path), TABLES[path.suffix], data_files=str(path))
    if path.is_file():
        raise DataError(f"{path} is a file of another kind: {EXPECTED}")
    if path.suffix in {".jsonl", *TABLES} or is_picture(path) or path.is_absolute() or str(source)[0] in ".~":
        raise DataError(f"{path} does not exist: {EXPECTED}")
    return _from_dataset(str(source), str(source))


# ---------------------------------------------------------------------------------------------------- files and folders


def _from_folder(folder: Path) -> list[Callable[[], Sample]]:
    if (folder / METADATA).is_file():
        return _from_lines(folder / METADATA)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    images = [file for file in files if is_picture(file)]
    is_dataset = any(file.suffix in TABLES or file.suffix == ".jsonl" for file in files)
    if is_dataset and not any(image.with_suffix(".txt").is_file() for image in images):
        return _from_dataset(str(folder), str(folder))
    if not images:
        raise DataError(f"{folder} holds no images: {EXPECTED}")
    return [_from_pair(image).sample for image in images]


def _from_pair(image: Path) -> _Row:
    prompt = image.with_suffix(".txt")
    if not prompt.is_file():
        raise DataError(
            f"{image} has no question: write it into {prompt.name} beside it (first line; the answer, if known, in the "
            f"second), or put all questions into a {METADATA} with file_name and question"
        )
    lines = [line.strip() for line in _read_text(prompt).splitlines()]
    if not lines or not lines[0]:
        raise DataError(f"{prompt} line 1: no question: write it into the first line")
    answer = lines[1] if len(lines) > 1 and lines[1] else None
    return _Row(str(image), Picture("", image), lines[0], answer, UNLABELLED, [])


def _from_lines(file: Path) -> list[Callable[[], Sample]]:
    rows: list[Callable[[], Sample]] = []
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if line.strip():
            where = f"{file} line {number}"
            rows.append(_from_fields(_parse(line, where), where, file.parent).sample)
    return rows


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON ({error}): every line must be one complete JSON object") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: {shown(row)} is not an object: write {{'image': ..., 'question': ...}} in JSON")
    return row


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): check its permissions") from error


# ------------------------------------------------------------------------------------------------------------- datasets


def _from_dataset(name: str, builder: str, **options: Any) -> list[Callable[[], Sample]]:
    """Rows of a dataset, each read when it is chosen; pictures stay encoded, so that a bad one can be named."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name} needs the datasets library: pip install datasets") from error
    opened = _open_dataset(datasets, name, builder, options)
    for column, feature in opened.features.items():
        if isinstance(feature, datasets.Image):
            opened = opened.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):  # a list of pictures
            opened = opened.cast_column(column, type(feature)(datasets.Image(decode=False)))
    return [partial(_dataset_sample, opened, name, index) for index in range(len(opened))]


def _dataset_sample(opened: Any, name: str, index: int) -> Sample:
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    return _from_fields(opened[index], f"{name} ({opened.split}) row {index}", folder).sample()


def _open_dataset(datasets: Any, name: str, builder: str, options: dict[str, Any]) -> Any:
    """One split of a hub dataset, a local dataset folder or a ``save_to_disk`` folder."""
    saved = any((Path(name) / marker).is_file() for marker in ("state.json", "dataset_dict.json"))
    try:
        with _silent("huggingface_hub", "datasets"):
            if not Path(name).exists():
                _check_hub(datasets, name)
            opened = datasets.load_from_disk(name) if saved else datasets.load_dataset(builder, **options)
    except DataError:
        raise
    except Exception as error:  # a dozen kinds: no network, no such name, several configurations, a broken file
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{name} could not be opened as a dataset ({type(error).__name__}: {reason}): {EXPECTED}. "
            "Without a network, download the dataset first or give a local folder"
        ) from error
    if not isinstance(opened, dict):
        return opened
    split = next((split for split in SPLIT_ORDER if split in opened), next(iter(opened), None))
    if split is None:
        raise DataError(f"{name} has no splits and no rows: {EXPECTED}")
    return opened[split]


def _check_hub(datasets: Any, name: str) -> None:
    """Ask the hub once whether there is such a dataset, because ``datasets`` would retry for a long time."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        get_hf_file_metadata(hf_hub_url(name, "README.md", repo_type="dataset"), timeout=PROBE_SECONDS)
    except GatedRepoError as error:
        raise DataError(f"{name} is gated: accept its terms on huggingface.co and run: hf auth login") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataError(f"{name} is neither a path here nor a dataset on the hub: {EXPECTED}") from error
    except RemoteEntryNotFoundError:
        pass  # a dataset without a README
    except Exception:  # no network, or none wanted: what was downloaded before can still be opened
        *namespace, last = name.split("/")
        cached = "___".join([*namespace, datasets.naming.camelcase_to_snakecase(last)])
        if not (Path(datasets.config.HF_DATASETS_CACHE) / cached).is_dir():
            raise


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Keep the loggers of libraries still: what went wrong is told once, by us."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ----------------------------------------------------------------------------------------------------------------- rows


def _from_fields(row: Mapping[str, Any], where: str, folder: Path) -> _Row:
    question = _field(row, QUESTION, where)
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: the question is {shown(question)}: it must be a text that is not empty")
    task = row.get("task")
    if task is not None and not isinstance(task, str):
        raise DataError(f"{where}: the task is {shown(task)}: it must be a text, or be left out")
    picture = _picture(_field(row, IMAGE, where), where, folder)
    return _Row(where, picture, question.strip(), _answer(row, where), task or UNLABELLED, _objects(row, where))


def _field(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    others = ", ".join(names[1:])
    raise DataError(f"{where}: no {names[0]} (nor {others}); it has {', '.join(row) or 'no fields'}: add {names[0]}")


def _answer(row: Mapping[str, Any], where: str) -> str | None:
    """The answer; of a list of answers, as VQA sets have them, the most common one (the first among equals)."""
    answer = next((row[name] for name in ANSWER if row.get(name) is not None), None)
    if isinstance(answer, list):
        texts = [item.get("answer") if isinstance(item, dict) else item for item in answer]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: the answers are {shown(answer)}: they must be texts")
        answer = Counter(texts).most_common(1)[0][0] if texts else None
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"{where}: the answer is {shown(answer)}: it must be a text, or be left out")
    return answer


def _objects(row: Mapping[str, Any], where: str) -> list[dict]:
    """The drawn things; metadata.jsonl holds them as JSON in a string, because their fields differ."""
    objects = row.get("objects") or []
    if isinstance(objects, str):
        try:
            objects = json.loads(objects)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: objects is broken JSON ({error}): mend it or leave objects out") from error
    if not isinstance(objects, list) or not all(isinstance(thing, dict) for thing in objects):
        raise DataError(f"{where}: objects is {shown(objects)}: it must be a list of objects, or be left out")
    return objects


def _picture(value: Any, where: str, folder: Path) -> Picture:
    if isinstance(value, list):
        if len(value) != 1:
            raise DataError(f"{where}: {len(value)} images: a sample has exactly one")
        value = value[0]
    return Picture.of(value, where, folder)
