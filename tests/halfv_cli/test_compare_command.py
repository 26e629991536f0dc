"""``halfv compare`` from data to a report: gone on with after a kill, and one line for what makes no sense."""

import csv
import json
import signal
import subprocess
import sys

import pytest

COMPARE = ("compare", "--model", "tiny-qwen2.5-vl", "--dtype", "float32", "--out", "out")
FEW = ("--samples", 6, "--batch-size", 2, "--methods", "divprune,fastv,shortv", "--retention", "0.5,0.111")
KILLED = """
import os, signal, sys

import torch

from halfv_cli.main import main
from halfv_probe.calibration.journal import Journal

torch.set_num_threads(1)  # as those who go on: the number of threads is in the last digits
write, last = Journal._write, int(sys.argv[1])


def killed(self, entry):
    self.lines = getattr(self, "lines", 0) + 1
    write(self, entry)
    if self.lines == last:
        self._file.write('{"results": {"half a li')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


Journal._write = killed
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a comparison in one go."""
    from halfv_cli.main import main

    out = tmp_path_factory.mktemp("whole") / "new" / "folder"
    options = [str(word) for word in (*COMPARE[:-1], out, *FEW)]
    assert main([*options, "--plan", "ivr:2:0.5", "--plan", "downsample::0.5"]) == 0
    return out


def rows_of(folder):
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_from_data_to_a_report(whole):
    rows = rows_of(whole)
    names = list(dict.fromkeys(row["entrant"] for row in rows))
    assert names == [
        "untouched",
        *(f"random_choice@{share}#{seed}" for share in ("0.5", "0.111") for seed in (0, 1, 2)),
        "downsample@0.5",
        "downsample@0.111",
        "vtw",
        "divprune@0.5",
        "divprune@0.111",
        "fastv@0.5",
        "plan ivr:2:0.5",
        "plan downsample::0.5",
    ]
    assert len(rows) == 6 * len(names)
    document = json.loads((whole / "results.json").read_text())
    about = document["provenance"]
    assert about["command"] == "halfv compare" and about["model"] == "tiny-qwen2.5-vl" and about["samples"] == 6
    assert about["dtype"] == "float32" and about["seed"] == 0 and about["match"] == "tokens"
    assert {failure["entrant"] for failure in document["failures"]} == {"fastv@0.111", "shortv"}
    report = (whole / "report.md").read_text()
    assert "FastV cannot go below 0.21 on average here, as it acts at layer 2" in report
    assert {path.name for path in whole.iterdir()} >= {"report.md", "frontier.png", "frontier.csv", "results.csv"}
    assert not (whole / "compare.journal").exists()


@pytest.mark.parametrize("lines", [2, 5, 9], ids=["in replies", "in plans", "in changed replies"])
def test_a_comparison_that_was_killed_goes_on_to_the_same_result(halfv, whole, tmp_path, lines):
    options = [*COMPARE, *FEW, "--plan", "ivr:2:0.5", "--plan", "downsample::0.5"]
    words = [str(word) for word in options]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(lines), *words], cwd=tmp_path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    journal = tmp_path / "out" / "compare.journal"
    assert len(journal.read_text().splitlines()) == 1 + lines + 1 and not (tmp_path / "out" / "results.csv").exists()
    result = halfv(*options, "--resume")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert not journal.exists()


def test_what_the_terminal_says(halfv, tmp_path):
    result = halfv(*COMPARE, "--samples", 3, "--methods", "none", "--no-baselines", "--plan", "fastv:2:0.5")
    assert result.code == 0, result.err
    assert "plans: 3 samples" in result.err and "wrote out in" in result.err
    assert result.err.count("plans: 3 samples") == 1 and result.err.count("changed replies") <= 1
    assert "fastv:2:0.5" in result.out
    assert [row["entrant"] for row in rows_of(tmp_path / "out")] == ["untouched"] * 3 + ["plan fastv:2:0.5"] * 3


def test_budgets_of_flops(halfv, tmp_path):
    result = halfv(*COMPARE, "--samples", 2, "--methods", "fastv,visionzip", "--match", "flops", "--retention", "0.5")
    assert result.code == 0, result.err
    flops = {row["entrant"]: float(row["flops"]) for row in rows_of(tmp_path / "out")}
    assert flops["fastv@0.5"] == pytest.approx(flops["random_choice@0.5#0"], rel=0.01)
    assert flops["visionzip@0.5"] == pytest.approx(flops["random_choice@0.5#0"], rel=0.01)


def refused(result, tmp_path, before, fragment):
    assert result.code != 0 and result.out == ""
    assert result.said.startswith("halfv: ") and result.said.count("\n") == 1, result.err
    assert fragment in result.said and "Traceback" not in result.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--retention", "0"], "a retention of 0"),
        (["--retention", "0.5,1.5"], "a retention of 1.5"),
        (["--retention", "half"], "--retention is 'half'"),
        (["--retention", ""], "--retention is ''"),
        (["--retention", "nan"], "a retention of nan"),
        (["--methods", "fastvv"], "did you mean fastv"),
        (["--methods", ""], "no method ''"),
        (["--methods", "all,fastv"], "no method 'all'"),
        (["--plan", "nonsense"], "nonsense"),
        (["--plan", "missing.json"], "missing.json"),
        (["--plan", "fastv:99:0.5"], "layer 99"),
        (["--profile", "missing.json"], "missing.json"),
        (["--profile", "other.json"], "calibrate this model with"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--samples", "0"], "halfv compare --help"),
        (["--match", "time"], "halfv compare --help"),
        (["--model", "tiny-lava"], "tiny-lava"),
        (["--out", "other.json"], "other.json"),
        (["--out", "other.json/below"], "other.json"),
        (["--out", "old", "--resume"], "old/compare.journal is of another comparison"),
        (["--out", "odd", "--resume"], "odd/compare.journal is not a journal of halfv compare"),
    ],
)
def test_what_makes_no_sense_is_one_line(halfv, profile, tmp_path, options, fragment):
    profile["model"]["architecture"] = "Another"
    (tmp_path / "other.json").write_text(json.dumps(profile))
    for name, content in (("old", '{"model": "another"}\n'), ("odd", "what is this\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "compare.journal").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    result = halfv(*COMPARE, *options, "--samples", 2) if "--samples" not in options else halfv(*COMPARE, *options)
    refused(result, tmp_path, before, fragment)
