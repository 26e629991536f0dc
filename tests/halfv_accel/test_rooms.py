"""What AGENTS.md promises of the source itself."""

import ast
import sys
from pathlib import Path

import pytest

import halfv_accel

PACKAGE = Path(halfv_accel.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ALLOWED = {*sys.stdlib_module_names, "torch", "transformers", "pydantic", "huggingface_hub", "triton", "halfv_accel"}


def imported(tree):
    """Packages of all imports, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield "halfv_accel" if node.level else node.module.split(".")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_run_time_imports_nothing_else(file):
    assert set(imported(ast.parse(file.read_text()))) <= ALLOWED


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_triton_is_optional(file):
    """Only kernels import it, and kernels are imported inside functions only."""
    tree = ast.parse(file.read_text())
    kernel = file.parent.name == "kernels" and file.name != "__init__.py"
    assert kernel or "triton" not in set(imported(tree))
    names = {
        f"{node.module}.{alias.name}" for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {name for name in names if "kernels" in name} <= {"halfv_accel.kernels.triton_works"}


def last_words(message):
    """The literal end of a string or of an f-string."""
    if isinstance(message, ast.JoinedStr):
        message = message.values[-1]
    return message.value if isinstance(message, ast.Constant) else ""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_error_ends_in_a_full_stop(file):
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    errors = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "HalfVError"]
    assert not [call.lineno for call in errors if call.args and last_words(call.args[0]).endswith(".")]
