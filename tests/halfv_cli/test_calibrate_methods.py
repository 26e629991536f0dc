"""``halfv calibrate --method``: a profile of another method, from data to an answer; nonsense is one line."""

import json

import pytest

from halfv_accel import Profile
from halfv_accel.published import METHODS
from halfv_cli.calibrate_methods import OPTIONS
from halfv_data import scenes

CALIBRATE = ("calibrate", "--model", "tiny-qwen2.5-vl", "--dtype", "float32")


@pytest.fixture
def rows(tmp_path):
    """Four questions with their pictures, as JSONL."""
    lines = []
    for number, sample in enumerate(scenes(4, seed=5)):
        sample.image.save(tmp_path / f"{number}.png")
        lines.append(json.dumps(dict(image=f"{number}.png", question=sample.question, answer=sample.answer)))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_shortv_from_data_to_an_answer(halfv, rows, tmp_path):
    result = halfv(*CALIBRATE, "--data", rows, "--method", "shortv", "--layers", 3)
    assert result.code == 0, result.err
    assert "KL of layers: 4 samples" in result.err
    profile = Profile.load(tmp_path / "profile.json")
    skip = profile.plan().skip
    assert len(skip) == 3
    assert f"skip:{'+'.join(map(str, skip))}" in result.out and "the 3 of 10 layers with the least KL" in result.out
    assert profile.calibration.data == str(rows) and profile.evidence.measured.options == {"layers": 3}
    assert not (tmp_path / "profile.json.journal").exists()
    answer = halfv("run", "--profile", "profile.json", "--image", "0.png", "--prompt", "How many shapes?")
    assert answer.code == 0, answer.err
    for command in (("report", "--out", "page.html"), ("plot-entropy", "--out", "curve.png")):
        refused = halfv(command[0], "--profile", "profile.json", *command[1:])
        assert refused.code == 1 and refused.said.count("\n") == 1
        assert "not HalfV's own: only halfv run and halfv bench can use it" in refused.said


@pytest.mark.parametrize("options", [["vtw"], ["fitprune", "--target-flops", 0.6], ["erank_divprune"]])
def test_the_others_write_a_profile_too(halfv, rows, tmp_path, options):
    result = halfv(*CALIBRATE, "--data", rows, "--method", *options)
    assert result.code == 0, result.err
    profile = Profile.load(tmp_path / "profile.json")
    assert profile.evidence.measured.method == options[0]
    assert profile.plan().stages
    if options[0] == "fitprune":
        assert profile.evidence.flops <= 0.6


def test_every_method_that_needs_a_calibration_has_one():
    assert {*OPTIONS} == {"halfv", *(name for name, method in METHODS.items() if method.calibrated)}


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--max-kl", 0.1], ["--max-kl is no option of --method halfv"]),
        (["--layers", 3], ["--layers is no option of --method halfv"]),
        (["--retention", 0.5], ["--retention is no option of --method halfv"]),
        (["--method", "vtw", "--max-drop", 0.1], ["--max-drop is no option of --method vtw, which knows --max-kl"]),
        (["--method", "vtw", "--k", "elbow"], ["--k is no option of --method vtw"]),
        (["--method", "shortv", "--no-null"], ["--null is no option of --method shortv, which knows --layers"]),
        (["--method", "adavtp", "--fidelity", "paper"], ["--fidelity is no option of --method adavtp"]),
        (["--method", "fitprune"], ["add --target-flops"]),
        (["--method", "fitprune", "--target-flops", 2], ["--target-flops is 2"]),
        (["--method", "vtw", "--max-kl", -1], ["--max-kl is -1"]),
        (["--method", "vtw", "--max-kl", "nan"], ["--max-kl is nan"]),
        (["--method", "erank_bat", "--retention", 0], ["--retention is 0"]),
        (["--method", "erank_bat", "--retention", "nan"], ["--retention is nan"]),
        (["--method", "shortv", "--layers", 0], ["--layers"]),
        (["--method", "shortv", "--layers", 99], ["layers is 99: the model has 10"]),
        (["--method", "pdrop"], ["--method", "vtw"]),
    ],
)
def test_options_that_make_no_sense_are_one_line(halfv, tmp_path, options, fragments):
    result = halfv(*CALIBRATE, "--samples", 1, *options)
    assert result.code != 0 and result.out == ""
    assert result.said.startswith("halfv: ") and result.said.count("\n") == 1, result.err
    assert all(fragment in result.said for fragment in fragments)
    assert list(tmp_path.iterdir()) == []
