"""A sample that cannot be used is named before anything is measured, and left out where that is asked for."""

import json

import pytest
from PIL import Image

from halfv_accel import Profile
from halfv_data import scenes
from halfv_probe.calibration.measurements import Measurements

CALIBRATE = ("calibrate", "--model", "tiny-qwen2.5-vl", "--dtype", "float32", "--no-null", "--data", "rows.jsonl")
BAD = {
    "too thin": ({"image": "thin.png"}, "absolute aspect ratio must be smaller than 200"),
    "a placeholder": ({"question": "What is <|image_pad|>?"}, "the question holds <|image_pad|>"),
    "cut off": ({"image": "cut.png"}, "cut.png is damaged or cut off"),
    "half a character": ({"question": "What is \ud800?"}, r"holds \ud800, half of a character"),
}


@pytest.fixture
def write(tmp_path):
    """``write({2: {"image": "thin.png"}})`` writes six rows, with row 2 changed."""
    rows = []
    for number, scene in enumerate(scenes(6, seed=0)):
        scene.image.save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": scene.question, "answer": scene.answer})
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:2000])
    Image.new("RGB", (1, 2000)).save(tmp_path / "thin.png")

    def run(changes):
        changed = [json.dumps({**row, **changes.get(number, {})}) for number, row in enumerate(rows)]
        (tmp_path / "rows.jsonl").write_text("\n".join(changed))

    return run


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sample_is_named_before_anything_is_measured(halfv, tmp_path, write, monkeypatch, case):
    monkeypatch.setattr(Measurements, "each", lambda *_, **__: pytest.fail("something was measured"))
    change, reason = BAD[case]
    write({4: change})
    result = halfv(*CALIBRATE)
    assert result.code == 1 and result.out == ""
    assert result.err.count("\n") == 1 and result.err.startswith("halfv: rows.jsonl line 5: "), result.err
    assert reason in result.err and "--skip-bad leaves them out" in result.err
    assert not list(tmp_path.glob("profile.json*"))


def test_bad_samples_are_left_out_and_counted(halfv, tmp_path, write):
    write({1: BAD["too thin"][0], 4: BAD["a placeholder"][0]})
    result = halfv(*CALIBRATE, "--skip-bad")
    assert result.code == 0
    assert "rows.jsonl line 2: " in result.err and "rows.jsonl line 5: " in result.err
    assert "2 of 6 samples cannot be used and are left out" in result.err
    assert Profile.load(tmp_path / "profile.json").calibration.samples == 4


def test_where_no_sample_can_be_used_there_is_nothing_to_measure(halfv, write):
    write(dict.fromkeys(range(6), BAD["too thin"][0]))
    result = halfv(*CALIBRATE, "--skip-bad")
    assert result.code == 1 and result.err.count("\n") == 1
    assert "none of 6 samples can be used; the first: rows.jsonl line 1: " in result.err


def test_after_mending_a_row_a_calibration_goes_on(halfv, tmp_path, write, monkeypatch):
    def interrupt(_measurements):
        raise KeyboardInterrupt

    write({})
    with monkeypatch.context() as patched:
        patched.setattr(Measurements, "replies", interrupt)
        assert halfv(*CALIBRATE).code == 130
    journal = tmp_path / "profile.json.journal"
    before = journal.read_bytes()
    write({4: {"question": "What is this?"}})
    with monkeypatch.context() as patched:
        patched.setattr(Measurements, "replies", interrupt)
        assert halfv(*CALIBRATE, "--resume").code == 130
    after = journal.read_bytes()
    assert after.startswith(before)
    more = [json.loads(line)["results"] for line in after[len(before) :].splitlines()]
    assert [len(results) for results in more] == [1, 1]  # the row's curves and its redundancy, and nobody else's
    assert halfv(*CALIBRATE, "--resume").code == 0 and not journal.exists()


@pytest.mark.parametrize("prompt", ["What is \ud800?", "\udcff"])  # the second is how a byte that is not UTF-8 arrives
def test_half_a_character_in_a_prompt(halfv, write, prompt):
    write({})
    result = halfv(
        "run",
        "--model",
        "tiny-llava",
        "--plan",
        "ivr:2:0.5",
        "--image",
        "0.png",
        "--prompt",
        prompt,
        "--dtype",
        "float32",
    )
    assert result.code == 1 and result.out == "" and result.err.count("\n") == 1
    assert "half of a character, which cannot be encoded as text" in result.err
