"""``--plan downsample::0.25``: what each command does with pictures that are to be shrunk."""

import json

import pytest

from halfv_accel import Profile
from halfv_accel.plan_document import PlanDocument
from halfv_accel.plan_text import parse_plan
from halfv_data import scenes

from .test_bad_input import refused, snapshot

QWEN = ("--model", "tiny-qwen2.5-vl", "--plan", "downsample::0.25")
BOTH = ("--model", "tiny-qwen2.5-vl", "--plan", "downsample::0.5,ivr:2:0.5")
LLAVA = ("--model", "tiny-llava", "--plan", "downsample::0.25")


def test_run_says_what_became_of_the_picture(halfv):
    result = halfv("run", *BOTH, "--compare")
    assert result.code == 0, result.err
    assert "144 visual tokens -> 72 downsampled -> 36 kept from layer 2 (ivr)" in result.out
    assert "untouched model: the same answer" in result.out
    found = json.loads(halfv("run", *QWEN, "--json").out)
    assert (found["visual_tokens"], found["downsampled_to"], found["stages"]) == (144, 36, [])
    assert found["plan"] == "downsample::0.25" and 0 < found["flops_ratio"] < 0.5


def test_a_number_of_tokens_is_of_all_pictures_together(halfv, tmp_path):
    for index, sample in enumerate(scenes(2, seed=3)):
        sample.image.save(tmp_path / f"{index}.png")
    pictures = ("--image", "0.png", "--image", "1.png", "--prompt", "What color is the star?")
    result = halfv("run", "--model", "tiny-qwen2.5-vl", "--plan", "downsample::50", *pictures, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["visual_tokens"], found["downsampled_to"]) == (288, 50)


def test_rows_of_an_input_are_those_of_single_questions(halfv, tmp_path):
    rows = []
    for index, sample in enumerate(scenes(3, seed=5)):
        sample.image.save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "question": sample.question, "answer": sample.answer})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = halfv("run", *BOTH, "--input", "q.jsonl", "--output", "a.jsonl")
    assert result.code == 0, result.err
    answered = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for row, asked in zip(answered, rows, strict=True):
        alone = json.loads(halfv("run", *BOTH, "--image", asked["image"], "--prompt", asked["question"], "--json").out)
        assert row["answer"] == alone["text"]
        assert (row["visual_tokens"], row["downsampled_to"], row["visual_tokens_after"]) == (144, 72, [36])
        assert row["plan"] == "downsample::0.5,ivr:2:0.5:0.1"


def test_bench_times_smaller_pictures(halfv, tmp_path):
    sizes = ("--visual-tokens", 144, "--text-tokens", 8, "--new-tokens", 2, "--repeats", 1)
    result = halfv("bench", *QWEN, *sizes)
    assert result.code == 0, result.err
    assert "144 visual (downsampled: 36)" in " ".join(result.out.split())
    [found] = json.loads((tmp_path / "bench.json").read_text())["comparisons"]
    assert (found["visual_tokens"], found["downsampled_to"]) == ([144], [36])
    assert [each["plan"] for each in found["variants"]] == ["untouched", "downsample::0.25", "downsample::0.25"]


def test_a_document_and_a_profile_hold_it(halfv, tmp_path, profile_path):
    plan = parse_plan("downsample::0.25")
    PlanDocument.of(plan).save(tmp_path / "plan.json")
    first = halfv("run", "--model", "tiny-qwen2.5-vl", "--plan", "plan.json", "--json")
    known = Profile.load(profile_path)
    held = known.model_copy(update={"planned": PlanDocument.of(plan), "ivr": None, "ssr": None})
    held.save(tmp_path / "mine.json")
    assert Profile.load(tmp_path / "mine.json").plan() == plan
    second = halfv("run", "--profile", "mine.json", "--json")
    for result in (first, second):
        assert result.code == 0, result.err
        assert json.loads(result.out)["downsampled_to"] == 36


@pytest.mark.parametrize(
    "command", [("run",), ("run", "--input", "q.jsonl", "--output", "a.jsonl"), ("bench", "--visual-tokens", 16)]
)
def test_a_fixed_grid_is_refused(halfv, tmp_path, command):
    (tmp_path / "q.jsonl").write_text('{"question": "Where?", "image": "0.png"}\n')
    next(iter(scenes(1, seed=0))).image.save(tmp_path / "0.png")
    before = snapshot(tmp_path)
    refused(halfv(*command, *LLAVA), tmp_path, before, "downsample is not for Llava", "choose a method that picks")


def test_break_even_and_nonsense_are_refused(halfv, tmp_path):
    before = snapshot(tmp_path)
    refused(halfv("bench", *QWEN, "--break-even"), tmp_path, before, "--break-even", "leave it out")
    wrong = ("--model", "tiny-qwen2.5-vl", "--plan", "ivr:2:0.5,downsample::0.25")
    refused(halfv("run", *wrong), tmp_path, before, "write it first")


def test_it_is_listed(halfv):
    [row] = [
        row
        for row in json.loads(halfv("methods", "--model", "qwen2.5-vl-7b", "--json").out)
        if row["name"] == "downsample"
    ]
    assert (row["where"], row["plan"]) == ("the picture", "downsample::0.25")
