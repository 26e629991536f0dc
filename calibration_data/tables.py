"""What ``datasets`` opens: Parquet, Arrow, saved data sets, folders with configs and splits, and the hub.

Rows are read one by one when they are drawn, and pictures stay in the table until they are asked for. Text files among
them are read by `text_files`, because a value there should stay as it was written.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from halfv_data.errors import DataError, shown
from halfv_data.rows import Reading, Row, Source, brief, choose_split, listing
from halfv_data.text_files import join, read_text_file, text_suffix

BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
SAVED = ("state.json", "dataset_dict.json")
PROBE_SECONDS = 10


def read_tables(files: Sequence[Path], reading: Reading) -> Source:
    """Parquet or Arrow files of one split.

    Raises
    ------
    DataError
        If ``datasets`` is not installed or cannot read them.
    """
    datasets, name = _datasets(files[0].name), str(files[0])
    builder = BUILDERS[files[0].suffix.lower()]
    with _explained(name, f"is it a whole {builder.capitalize()} file?"), _silent("datasets"):
        opened = datasets.load_dataset(builder, data_files=[str(file) for file in files])
        return replace(_table(opened["train"], name, files[0].parent), kind=builder.capitalize())


def read_saved(folder: Path, reading: Reading) -> Source:
    """A folder that ``save_to_disk`` wrote."""
    datasets = _datasets(str(folder))
    with _explained(str(folder), "save it again with save_to_disk"), _silent("datasets"):
        split, table = _split(datasets.load_from_disk(str(folder)), str(folder), reading)
        return replace(_table(table, str(folder), folder), kind="saved data set", split=split)


def read_dataset(name: str, reading: Reading) -> Source:
    """A data set of the hub, or a folder whose configs and splits ``datasets`` knows.

    Raises
    ------
    DataError
        If there is no such data set, or it has several configs or not the split that was asked for: with the names.
    """
    datasets, folder = _datasets(name), Path(name)
    advice = (
        "is it whole?" if folder.exists() else "without a network, download the dataset first or give a local folder"
    )
    with _explained(name, advice), _silent("huggingface_hub", "datasets"):
        if not folder.exists():
            _check_hub(datasets, name)
        builder = _builder(datasets, name, reading.config)
        config = builder.config.name if builder.config.name != "default" else reading.config
        files = _text_files(datasets, builder.config.data_files, name, reading)
        if files is not None:
            return replace(join(name, files[1]), name=name, split=files[0], config=config, listed=False)
        split, table = _split(datasets.load_dataset(name, reading.config), name, reading)
        source = _table(table, name, folder if folder.is_dir() else Path())
    return replace(source, kind="data set", split=split, config=config)


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{shown(Path(name))} needs the datasets library: pip install 'halfv[probe]'") from error
    return datasets


def _builder(datasets: Any, name: str, config: str | None) -> Any:
    """What ``datasets`` would build; refused if it is not said which config is meant."""
    try:
        return datasets.load_dataset_builder(name, config)
    except ValueError as error:
        configs = datasets.get_dataset_config_names(name)
        if config is None and len(configs) > 1:
            raise DataError(
                f"{shown(Path(name))} has {len(configs)} configs: choose --config from {listing(configs)}"
            ) from error
        if config is not None and config not in configs:
            raise DataError(
                f"{shown(Path(name))} has no config {brief(config)}: choose --config from {listing(configs)}"
            ) from error
        raise


def _text_files(
    datasets: Any, files: Mapping[Any, Sequence[str]] | None, name: str, reading: Reading
) -> tuple[str, list[Source]] | None:
    """The chosen split, where it is JSON, CSV and the like."""
    if not files:
        return None
    by_split = {str(split): [str(file) for file in listed] for split, listed in files.items()}
    split = choose_split(name, list(by_split), reading.split)
    if not all(text_suffix(file) for file in by_split[split]):
        return None
    local = datasets.DownloadManager().download(by_split[split])
    pairs = zip(local, by_split[split], strict=True)
    return split, [read_text_file(Path(file), reading.skip_bad, called) for file, called in pairs]


def _split(opened: Any, name: str, reading: Reading) -> tuple[str | None, Any]:
    """Name and rows of the chosen split."""
    if isinstance(opened, dict):
        split = choose_split(name, list(opened), reading.split)
        return split, opened[split]
    return (str(opened.split) if opened.split else None), opened


# ----------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Rows(Sequence[Row]):
    """The rows of a table, each read when it is asked for; pictures as functions that read them."""

    table: Any
    name: str
    folder: Path
    pictures: tuple[str, ...]
    classes: Mapping[str, Any]  # columns of numbers that stand for names

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        fields = dict(self.table[index])
        for column in self.pictures:
            value = fields[column]
            several = isinstance(value, list)
            handles = [
                self._handle(one, column, index, place) for place, one in enumerate(value if several else [value])
            ]
            fields[column] = handles if several else handles[0]
        for column, names in self.classes.items():
            if isinstance(fields[column], int) and fields[column] >= 0:
                fields[column] = names.int2str(fields[column])
        split = f" ({self.table.split})" if self.table.split else ""
        return Row(f"{shown(Path(self.name))}{split} row {index}", fields, self.folder)

    @property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    def peek(self, names: Sequence[str], most: int) -> list[Mapping[str, Any]]:
        """Some columns of rows from all over the table, without reading the pictures."""
        wanted = [name for name in dict.fromkeys(names) if name in self.columns]
        step = -(-len(self) // most) or 1
        rows = self.table.select_columns(wanted).select(range(0, len(self), step))
        return [{**dict.fromkeys(names), **row} for row in rows]

    def _handle(self, value: Any, column: str, index: int, place: int) -> Any:
        if not isinstance(value, dict) or value.get("bytes") is None:
            return value
        return partial(self._read, column, index, place)

    def _read(self, column: str, index: int, place: int) -> Any:
        value = self.table[index][column]
        return value[place] if isinstance(value, list) else value


def _table(opened: Any, name: str, folder: Path) -> Source:
    """A table whose pictures stay encoded, so that a bad one can be named, and whose classes have names."""
    datasets = _datasets(name)
    pictures, classes = [], {}
    for column, feature in opened.features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.Image | getattr(datasets, "Video", datasets.Image)):
            opened = opened.cast_column(column, type(feature)(decode=False))
        elif isinstance(inner, datasets.Image):  # a list of pictures
            opened = opened.cast_column(column, type(feature)(datasets.Image(decode=False)))
        if isinstance(feature, datasets.Image) or isinstance(inner, datasets.Image):
            pictures.append(column)
        if isinstance(feature, datasets.ClassLabel):
            classes[column] = feature
    rows = _Rows(opened, name, folder, tuple(pictures), classes)
    return Source(name, "table", rows, pictures=tuple(pictures))


# -------------------------------------------------------------------------------------------------------------- the hub


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
        raise DataError(
            f"{shown(Path(name))} is gated: accept its terms on huggingface.co and run: hf auth login"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataError(f"{nothing_here(name)}, and no dataset of that name is on the hub") from error
    except RemoteEntryNotFoundError:
        pass  # a dataset without a README
    except Exception:  # no network, or none wanted: what was downloaded before can still be opened
        *namespace, last = name.split("/")
        cached = "___".join([*namespace, datasets.naming.camelcase_to_snakecase(last)])
        if not (Path(datasets.config.HF_DATASETS_CACHE) / cached).is_dir():
            raise


def nothing_here(name: str) -> str:
    """That a path leads nowhere, with what is called nearly so."""
    path = Path(name).expanduser()
    message = f"there is no file or folder {shown(path)}"
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return f"{message} (nor a folder {shown(path.parent)})"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"{message} (did you mean {near[0]}?)" if near else message


@contextmanager
def _explained(name: str, advice: str) -> Iterator[None]:
    """Errors of ``datasets``, a dozen kinds, as one."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = brief(f"{type(error).__name__}: {error}")
        here = "" if Path(name).exists() else f"{nothing_here(name)}, and "
        raise DataError(f"{here}{shown(Path(name))} could not be opened as a dataset ({reason}): {advice}") from error


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Keep loggers still, because what went wrong is told once, by us, and hide bars that nobody watches."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    hidden = not are_progress_bars_disabled() and not sys.stderr.isatty()
    try:
        if hidden:
            disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        if hidden:
            enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
