"""``halfv report``: a page from a profile alone, and with the model where it can be had."""

import json
from pathlib import Path

import pytest

from halfv_data import scenes

from .test_bad_input import refused, snapshot

EXAMPLE = Path(__file__).parents[2] / "reports" / "example" / "profile.json"


def test_the_example_gives_a_page_with_overlays(halfv, tmp_path):
    result = halfv("report", "--profile", EXAMPLE, "--out", "page.html", "--samples", 2)
    assert result.code == 0, result.err
    assert result.out.startswith("wrote page.html (") and result.said == ""
    page = (tmp_path / "page.html").read_text()
    assert page.count('download="tokens_') == 2
    assert "Drawn with tiny-qwen2.5-vl" in page and "of 144 kept from layer 3 (IVR)" in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_without_a_model_the_page_says_so(halfv, tmp_path):
    result = halfv("report", "--profile", EXAMPLE, "--no-model")
    assert (result.code, result.err) == (0, "")
    page = (tmp_path / "report.html").read_text()
    assert "Not drawn: the page was made with --no-model." in page and 'download="tokens_' not in page


def test_samples_are_read_as_they_were_for_the_calibration(halfv, tmp_path):
    """Paths start at another folder and the question has a column of its own: the profile remembers both."""
    (tmp_path / "pictures").mkdir()
    next(scenes(1, seed=0)).image.save(tmp_path / "pictures" / "0.png")
    row = {"image": "0.png", "question": "Not this.", "asked": "What shape is it?"}
    (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n")
    how = ("--data", "list.jsonl", "--images", "pictures", "--columns", "question=asked", "--no-null")
    assert halfv("calibrate", "--model", "tiny-llava", *how).code == 0
    result = halfv("report")
    assert result.said == "" and result.code == 0
    page = (tmp_path / "report.html").read_text()
    assert "What shape is it?" in page and "Not this." not in page


GONE = {
    "the model has gone": (("model", "id"), "/gone/model"),
    "the data have gone": (("calibration", "data"), "gone.jsonl"),
    "it is another model": (("model", "id"), "tiny-llava"),
}


@pytest.mark.parametrize("case", GONE)
def test_a_page_is_written_where_the_model_or_its_data_cannot_be_had(halfv, tmp_path, case):
    (part, field), value = GONE[case]
    profile = json.loads(EXAMPLE.read_text())
    profile[part][field] = value
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    result = halfv("report")
    assert result.code == 0
    assert result.said.startswith("halfv: kept tokens are not drawn: ") and result.said.count("\n") == 1
    page = (tmp_path / "report.html").read_text()
    assert "Not drawn, because" in page and 'download="entropy.csv"' in page


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--out", "."], "is a folder"),
        (["--out", "page.pdf"], ".html"),
        (["--out", "no-such-folder/page.html"], "no-such-folder"),
        (["--out", "/proc/page.html"], "/proc/page.html"),
        (["--profile", "no.json"], "no.json does not exist"),
        (["--samples", "0"], "samples"),
        (["--samples", "many"], "samples"),
        (["--device", "banana"], "banana"),
        (["--dtype", "int8"], "int8"),
    ],
)
def test_bad_report_arguments(halfv, tmp_path, arguments, fragment):
    profile = [] if "--profile" in arguments else ["--profile", EXAMPLE]
    before = snapshot(tmp_path)
    refused(halfv("report", *profile, *arguments), tmp_path, before, fragment)
