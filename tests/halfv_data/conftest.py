"""Pictures to ask about, and a cache of ``datasets`` that is not the user's."""

import io
import json

import datasets
import pytest

from halfv_data import scenes

DRAWN = list(scenes(6, seed=7))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """``datasets`` copies what it opens into a cache: not into the user's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture(scope="session")
def drawn():
    """Six samples."""
    return DRAWN


@pytest.fixture(scope="session")
def png():
    """The six pictures as PNG files."""
    files = []
    for sample in DRAWN:
        file = io.BytesIO()
        sample.image.save(file, "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture
def folder(tmp_path, png):
    """Six pictures, 0.png to 5.png, without questions."""
    for index, encoded in enumerate(png):
        (tmp_path / f"{index}.png").write_bytes(encoded)
    return tmp_path


@pytest.fixture
def write(tmp_path):
    """``write("a.json", value)`` below the folder: a text as it is, rows as JSON Lines, else as JSON."""

    def writing(name, content):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif name.endswith((".jsonl", ".ndjson")) and isinstance(content, list):
            file.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return writing
