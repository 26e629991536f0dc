"""``halfv data`` says what would be used, converts it, and calibrate takes the same options and says the same line."""

import json

import datasets
import pytest

from halfv_accel import Profile
from halfv_data import load_samples, scenes


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def pope(tmp_path):
    """POPE's form, its pictures in another folder, one row about no picture."""
    (tmp_path / "pictures").mkdir()
    rows = []
    for index, sample in enumerate(scenes(3, seed=5)):
        sample.image.save(tmp_path / f"pictures/{index}.png")
        rows.append({"question_id": index, "image": f"{index}.png", "text": sample.question, "label": sample.answer})
    rows.append({"question_id": 3, "image": None, "text": "Is it?", "label": "yes"})
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/pope.json").write_text(json.dumps({"data": rows}))
    return tmp_path / "lists/pope.json"


def test_one_line_says_it_all(halfv, pope):
    result = halfv("data", "--data", pope, "--images", "pictures", "--show", 1)
    assert (result.code, result.err) == (0, "")
    line, _, where, question, answer = result.out.splitlines()
    assert "pope.json (JSON): 4 rows, 3 samples, 1 left out: no image" in line
    assert "columns image=image, question=text, answer=label; 3 of 3 have an answer" in line
    first = next(scenes(1, seed=5))
    assert "entry 1: 1 picture (192 x 192)" in where
    assert (question.split(": ")[1], answer.split(": ")[1].strip()) == (first.question, first.answer)


def test_a_converted_set_is_the_same_samples(halfv, pope, tmp_path):
    result = halfv("data", "--data", pope, "--images", "pictures", "--show", 0, "--out", "converted")
    assert result.code == 0 and "wrote 3 samples; next: halfv calibrate --data converted" in result.out
    before = [(s.images, s.question, s.answer) for s in scenes(3, seed=5)]
    assert [(s.images, s.question, s.answer) for s in load_samples(tmp_path / "converted")] == before
    again = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "converted"), split="train")
    assert again["question"][:] == [question for _, question, _ in before]
    refused = halfv("data", "--data", pope, "--images", "pictures", "--out", "converted")
    assert refused.code == 1 and "converted exists and is not empty: name a new folder" in refused.err


def test_a_set_of_every_kind_of_picture_is_converted(halfv, tmp_path, pope):
    """Several pictures a row, one picture in several rows, base64, transparency, frames of a video."""
    import base64
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(file, "WEBP", lossless=True)
    webp = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    rows = [
        {"image": ["pictures/0.png", webp], "question": "Both?"},
        {"image": "pictures/0.png", "question": "One?\nReally?", "answer": "007"},
        {"video": ["pictures/0.png", "pictures/1.png"], "question": "Which?"},
    ]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert halfv("data", "--data", "s.jsonl", "--out", "converted").code == 0
    written = {file.name for file in (tmp_path / "converted/pictures").iterdir()}
    assert written == {"000000.png", "000001.webp", "000002.png"}
    assert load_samples(tmp_path / "converted") == load_samples(tmp_path / "s.jsonl")


def test_calibrate_reads_with_the_same_options_and_says_the_line(halfv, pope, tmp_path):
    arguments = ("--data", pope, "--images", tmp_path / "pictures", "--columns", "question=text,answer=label")
    result = halfv("calibrate", "--model", "tiny-llava", *arguments, "--samples", 3, "--no-null")
    assert result.code == 0, result.err
    lines = [line for line in result.err.splitlines() if "pope.json (JSON): 4 rows, 3 samples, 1 left out" in line]
    assert len(lines) == 1
    assert Profile.load(tmp_path / "profile.json").calibration.samples == 3


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--columns", "question"], "--columns has 'question': write role=name,role=name"),
        (["--columns", "asked=text"], "--columns names the role 'asked': the roles are image"),
        (["--columns", "question=nothing"], "has no column nothing, only question_id, image, text, label"),
        (["--images", "nowhere"], "--images is nowhere, and there is no such folder"),
        (["--config", "x"], "is one file and has no configs: leave --config out"),
        (["--split", "x"], "has no split 'x', no split at all: leave --split out"),
        (["--turns", "last"], "--turns"),
        ([], "image lists/0.png does not exist: check the path"),
    ],
)
def test_what_is_wrong_is_one_line(halfv, pope, arguments, fragment):
    for command in (["data"], ["calibrate", "--model", "tiny-llava"]):
        result = halfv(*command, "--data", "lists/pope.json", *arguments)
        assert result.code != 0 and result.out == ""
        assert result.err.startswith("halfv: ") and result.err.count("\n") == 1
        assert fragment in result.err


def test_the_shipped_set(halfv):
    result = halfv("data", "--samples", 102, "--show", 0)
    assert "default (shipped): 100 rows, 102 samples, none left out (2 of them drawn anew)" in result.out
