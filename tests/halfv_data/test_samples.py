"""Samples are decided by (split, seed, index), balanced over tasks, and answered rightly."""

import hashlib
import itertools
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from

from halfv_data import TASKS, DataError, Sample, fingerprint, scenes
from halfv_data.drawing import SPLITS, draw_scene, scene_rng

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
STEPS = {"above": (-1, 0), "below": (1, 0), "left of": (0, -1), "right of": (0, 1)}
GOLDEN = {
    "training": "64f563c21e5bd0e6ef158dac0a6dea4a6efcabf18a3e93b51ae1963a9087fc34",
    "calibration": "ed65342146d2fa8345b51ecb767a88b0e6389bffcb0428d252d773e49259671e",
    "heldout": "e5329c833348380cae542c93c3571b1ea107688c92d240d0a234c17e7cb09b6a",
}


# The oracle knows the question only as text, and where things are only in pixels.


def grid(thing: dict) -> tuple[int, int]:
    return thing["y"] // 64, thing["x"] // 64


def find(phrase: str, things: list[dict]) -> dict:
    """The one thing that "the star", "the red star" or "the number 47" names."""
    words = phrase.removeprefix("the ").split()
    matching = []
    for thing in things:
        traits = {"number", thing["text"]} if thing["kind"] == "number" else {thing["shape"], thing["colour"]}
        if set(words) <= traits:
            matching.append(thing)
    (only,) = matching
    return only


def beside(direction: str, thing: dict, things: list[dict]) -> dict:
    row, column = (a + b for a, b in zip(grid(thing), STEPS[direction], strict=True))
    (only,) = [other for other in things if grid(other) == (row, column)]
    return only


def side(a: dict, b: dict) -> str:
    across, down = a["x"] - b["x"], a["y"] - b["y"]
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "below" if down > 0 else "above"


def oracle(question: str, things: list[dict]) -> str:
    shapes = [thing for thing in things if thing["kind"] == "shape"]
    steps = "|".join(STEPS)
    if match := re.fullmatch(rf"What color is the shape ({steps}) (.+)\?", question):
        return beside(match[1], find(match[2], things), things)["colour"]
    if match := re.fullmatch(rf"What (number|shape) is ({steps}) (.+)\?", question):
        found = beside(match[2], find(match[3], things), things)
        return found["text" if match[1] == "number" else "shape"]
    if match := re.fullmatch(r"What number is at the (\w+) (\w+)\?", question):
        place = ROWS.index(match[1]), COLUMNS.index(match[2])
        (only,) = [thing for thing in things if grid(thing) == place]
        return only["text"]
    if match := re.fullmatch(r"What color is (the \w+)\?", question):
        return find(match[1], things)["colour"]
    if match := re.fullmatch(r"Where is (.+) relative to (.+)\?", question):
        return side(find(match[1], things), find(match[2], things))
    if match := re.fullmatch(r"Where is (.+)\?", question):
        row, column = grid(find(match[1], things))
        return f"{ROWS[row]} {COLUMNS[column]}"
    if match := re.fullmatch(r"Is there a (\w+) (\w+)\?", question):
        return "yes" if any((t["colour"], t["shape"]) == match.groups() for t in shapes) else "no"
    if match := re.fullmatch(r"How many (shape|number)s are there\?", question):
        return str(sum(thing["kind"] == match[1] for thing in things))
    raise ValueError(f"the oracle cannot read {question!r}")


@pytest.mark.parametrize("split", ["calibration", "heldout"])
def test_every_answer_follows_from_the_objects(split):
    for sample in scenes(180, seed=3, split=split):
        assert oracle(sample.question, sample.objects) == sample.answer, sample.question


@settings(max_examples=25, deadline=None)
@given(seed=integers(0, 10**9), task=sampled_from(TASKS))
def test_answers_follow_for_any_seed(seed, task):
    (sample,) = scenes(1, seed, "training", [task])
    assert sample.task == task
    assert oracle(sample.question, sample.objects) == sample.answer


@pytest.mark.parametrize("split", GOLDEN)
def test_pixels_are_the_same_on_every_machine(split):
    image = draw_scene(scene_rng(split, seed=0, index=0)).image
    assert image.size == (192, 192) and image.mode == "RGB"
    assert hashlib.sha256(image.tobytes()).hexdigest() == GOLDEN[split]


def test_the_same_seed_gives_the_same_samples_and_another_seed_others():
    assert fingerprint(scenes(9, seed=1)) == fingerprint(scenes(9, seed=1))
    assert fingerprint(scenes(9, seed=1)) != fingerprint(scenes(9, seed=2))


def test_fewer_samples_are_a_prefix_of_more():
    assert list(scenes(5, seed=4)) == list(itertools.islice(scenes(12, seed=4), 5))


def test_splits_and_seeds_share_no_picture():
    seen = [s.image.tobytes() for split in SPLITS for seed in (0, 1) for s in scenes(12, seed, split)]
    assert len(set(seen)) == len(seen) == 96


def test_tasks_take_turns():
    assert [sample.task for sample in scenes(20, seed=0)] == [TASKS[i % len(TASKS)] for i in range(20)]
    assert {sample.task for sample in scenes(4, seed=0, tasks=["number", "colour"])} == {"number", "colour"}


def test_existence_is_balanced():
    answers = [sample.answer for sample in scenes(400, seed=0, tasks=["existence"])]
    assert set(answers) == {"yes", "no"}
    assert 160 < answers.count("yes") < 240  # four standard deviations


def test_answers_of_a_task_vary():
    for task, least in {"counting": 4, "location": 9, "relation": 4, "colour": 8, "number": 40}.items():
        assert len({s.answer for s in scenes(90, seed=1, tasks=[task])}) >= least, task


def test_objects_are_plain_json():
    (sample,) = scenes(1, seed=0)
    assert json.loads(json.dumps(sample.objects)) == sample.objects
    assert len({thing["cell"] for thing in sample.objects}) == len(sample.objects)


@pytest.mark.parametrize("n", [0, -1])
def test_no_samples_are_refused_at_once(n):
    with pytest.raises(DataError, match=f"{n} samples asked for: ask for at least 1"):
        scenes(n, seed=0)


def test_unknown_split_and_task_are_refused_at_once():
    with pytest.raises(DataError, match="unknown split 'test': expected one of training, validation"):
        scenes(1, 0, "test")
    with pytest.raises(DataError, match=r"unknown tasks \['color'\]: expected some of colour, location"):
        scenes(1, 0, tasks=["color"])
    with pytest.raises(DataError, match="unknown tasks"):
        scenes(1, 0, tasks=[])


def test_fingerprint_sees_pixels_question_answer_and_order():
    a, b = scenes(2, seed=0)
    pixel = a.image.copy()
    pixel.putpixel((0, 0), (1, 2, 3))
    others = [
        Sample.of(pixel, a.question, a.answer),
        Sample.of(a.image, "?", a.answer),
        Sample.of(a.image, a.question, None),
    ]
    prints = [fingerprint(samples) for samples in ([a], [b], [a, b], [b, a], *([other] for other in others))]
    assert len(set(prints)) == len(prints)
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in prints)


def test_import_is_light():
    heavy = "('torch', 'datasets', 'transformers', 'pandas')"
    code = f"import sys, halfv_data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
