"""Pages of documentation are tests: their commands and their Python run as a reader would run them."""

import re
import shlex
from pathlib import Path

from halfv_accel import KNOWN_MODELS
from halfv_accel.selfcheck.__main__ import main as selfcheck
from halfv_cli.main import main

ROOT = Path(__file__).parent.parent


def blocks(page):
    """(language, code) of each block of commands or Python."""
    return re.findall(r"```(bash|python)\n(.*?)```", page, flags=re.S)


def run_block(language, code, capsys):
    """Run all of it in the present folder; every command must be one that is known here."""
    if language == "python":
        exec(compile(code, "a page's block", "exec"), {"__name__": "__page__"})
        return
    for line in code.splitlines():
        command = shlex.split(line, comments=True)
        if command[:1] == ["make"]:
            assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), line
        elif command[:1] == ["halfv"]:
            run_command(command[1:], line, capsys)
        elif command[:3] == ["python", "-m", "halfv_accel.selfcheck"]:
            assert selfcheck([str(ROOT / command[3]), *command[4:]]) == 0, line
        else:
            assert not command or command[0] in ("pip", "git", "cd"), f"a page shows a command nobody tests: {line}"


def run_command(arguments, line, capsys):
    """One of HalfV's commands."""
    named = next((KNOWN_MODELS[word] for word in arguments if word in KNOWN_MODELS), None)
    code = main(arguments)
    if named is None or arguments[0] == "methods":
        assert code == 0, capsys.readouterr().err
    else:  # weights that no test machine has: the right ones must be asked for
        assert code == 1 and named in capsys.readouterr().err, line
