"""The rooms of halfv_probe follow the data, and imports go one way."""

import ast
from pathlib import Path

import pytest

import halfv_probe

PACKAGE = Path(halfv_probe.__file__).parent
ORDER = ["states", "measures", "trials", "choice", "calibration", "methods"]
LAST = {"views": ["measures", "trials", "choice", "views"], "compare": [*ORDER, "views", "compare"]}
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE)


def rooms_of(file):
    """The rooms that a file imports from, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("halfv_probe."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_what_comes_before_it(file):
    room = file.relative_to(PACKAGE).parts[0]
    allowed = LAST[room] if room in LAST else ORDER[: ORDER.index(room) + 1]
    assert set(rooms_of(file)) <= set(allowed)


def test_every_room_has_a_place_in_the_order():
    assert {file.relative_to(PACKAGE).parts[0] for file in FILES} == {*ORDER, *LAST}
