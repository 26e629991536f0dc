"""Running the command line in this process, and one calibration that the tests share."""

import json
from dataclasses import dataclass

import pytest

from halfv_cli.main import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """What is on stderr besides notes, of which some machines have one more: about the dtype."""
        return "".join(line for line in self.err.splitlines(keepends=True) if not line.startswith("note: "))


@pytest.fixture
def halfv(capsys, monkeypatch, tmp_path):
    """``halfv("run", "--profile", path)`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def profile_path(tmp_path_factory):
    """profile.json of tiny-qwen2.5-vl, calibrated on four samples."""
    path = tmp_path_factory.mktemp("calibrated") / "profile.json"
    assert main(["calibrate", "--model", "tiny-qwen2.5-vl", "--samples", "4", "--out", str(path)]) == 0
    return path


@pytest.fixture
def profile(profile_path):
    """The same profile as a plain dict, to be spoilt."""
    return json.loads(profile_path.read_text())
