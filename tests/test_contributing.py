"""What CONTRIBUTING.md tells a stranger to write is a package that installs, passes its own tests and runs."""

import re
import shlex

import pytest

from tests.pages import ROOT, blocks
from tests.plug_ins import halfv, install, python

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"```\w+\n# ([\w.]+)\n(.*?)```", PAGE, flags=re.S))
(COMMANDS,) = [code for language, code in blocks(PAGE.split("## Add a method")[1]) if language == "bash"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package of the page, and where it was written."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name, text in FILES.items():
        (source / name).write_text(text)
    install(target, source)
    return source, target


def test_the_example_is_complete_and_short():
    assert set(FILES) == {"text_likeness.py", "pyproject.toml", "test_text_likeness.py"}
    code = [line for line in FILES["text_likeness.py"].splitlines() if line.strip()]
    assert len(code) <= 30


@pytest.mark.parametrize("line", [line for line in COMMANDS.splitlines() if not line.startswith("pip ")])
def test_a_command_of_the_page(installed, line):
    source, target = installed
    command = [word.replace("tiny_vlm/", f"{ROOT}/tiny_vlm/") for word in shlex.split(line)]
    if command[0] == "pytest":
        code, printed, error = python(target, "-m", "pytest", "-q", "-p", "no:cacheprovider", *command[1:], cwd=source)
        assert code == 0 and "2 passed" in printed, printed + error
    elif command[0] == "halfv":
        code, printed, error = halfv(target, *command[1:])
        assert code == 0 and "text_likeness" in printed and "cannot be used" not in error, error
    else:
        code, printed, error = python(target, *command[1:])
        assert code == 0 and "checks passed" in printed, printed + error


def test_its_test_would_see_another_formula(installed):
    """The example's oracle is no decoration."""
    source, target = installed
    wrong = FILES["text_likeness.py"].replace("sign: float = 1.0", "sign: float = -1.0")
    (source / "text_likeness.py").write_text(wrong)  # pytest puts the folder of a test first
    code, printed, _ = python(target, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "formula", cwd=source)
    assert code == 1 and "1 failed" in printed, printed
