"""Samples become batches when they are asked for, and what cannot become one is named before anything is measured."""

import gc
import json

import pytest
import torch
from PIL import Image

from halfv_accel.prompts import batch_inputs
from halfv_data import Picture, Sample, Video, load_samples, scenes
from halfv_probe.trials.prompts import Prompts, check_samples
from tiny_vlm.llava import TinyLlava
from tiny_vlm.qwen import TinyQwen

SIDE = 321  # pixels; a size that no other picture of this process has


@pytest.fixture(scope="module", params=[TinyLlava, TinyQwen])
def processor(request):
    return request.param().processor()


@pytest.fixture
def photographs(tmp_path):
    """Nine pictures in files, as samples."""
    rows = []
    for number in range(9):
        Image.effect_noise((SIDE, SIDE), 20 + number).save(tmp_path / f"{number}.jpg")
        rows.append({"image": f"{number}.jpg", "question": f"What is number {number}?"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_samples(tmp_path / "rows.jsonl")


def decoded_alive():
    gc.collect()
    return sum(issubclass(type(each), Image.Image) and each.size == (SIDE, SIDE) for each in gc.get_objects())


def test_never_more_than_a_batch_is_decoded(processor, photographs, monkeypatch):
    prompts = Prompts(processor, photographs, batch_size=2)
    most, load = [], Picture.load
    monkeypatch.setattr(Picture, "load", lambda self: most.append(decoded_alive()) or load(self))
    for _ in prompts:
        assert decoded_alive() == 0
    assert len(most) == 9 and max(most) < 2
    usable, refusals = check_samples(processor, photographs)
    assert (usable, refusals) == (photographs, [])
    assert len(most) == 18 and max(most) < 2 and decoded_alive() == 0


def test_all_pictures_of_a_sample_are_asked_about(processor):
    one, two, three = (sample.pictures[0] for sample in scenes(3, seed=0))
    samples = [Sample((one, two), "Which?"), Sample((three,), "What is it?"), Sample((two, one), "Which?")]
    turns = [([picture.load() for picture in sample.pictures], sample.question) for sample in samples]
    (found,) = Prompts(processor, samples, batch_size=3)
    wanted = batch_inputs(processor, turns)
    assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert len(found["pixel_values" if "image_grid_thw" not in found else "image_grid_thw"]) == 5
    (swapped,) = Prompts(processor, samples[::-1], batch_size=3)
    assert not torch.equal(found["pixel_values"], swapped["pixel_values"])


def test_every_sample_that_cannot_be_used_is_named(tmp_path):
    processor = TinyQwen().processor()
    good, other = scenes(2, seed=0)
    picture = good.pictures[0]
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    samples = [
        good,
        Sample((Picture.of(Image.new("RGB", (1, 2000)), ""),), "What?", where="a.jsonl line 2"),
        Sample((picture,), "What is <|image_pad|>?", where="a.jsonl line 3"),
        Sample((Picture.of(tmp_path / "cut.png", "a.jsonl line 4"),), "What?", where="a.jsonl line 4"),
        Sample((), "What?", where="a.jsonl line 5"),
        Sample((), "What?", video=Video.of([good.image], ""), where="a.jsonl line 6"),
        Sample((picture, Picture.of(lambda: "gone.png", "")), "What?"),
        other,
    ]
    seen = []
    usable, refusals = check_samples(processor, samples, lambda *step: seen.append(step))
    assert usable == [good, other]
    reasons = ["aspect ratio", "holds <|image_pad|>", "cut.png", "neither picture nor video", "videos", "gone.png"]
    places = [*(f"a.jsonl line {number}: " for number in range(2, 7)), "sample 7: "]
    assert len(refusals) == len(reasons)
    for refusal, place, reason in zip(refusals, places, reasons, strict=True):
        assert refusal.startswith(place) and refusal.count(place) == 1 and reason in refusal
    assert seen == [("checking samples", number, 8) for number in range(1, 9)]


def test_what_was_refused_would_have_ended_the_measuring():
    thin = Sample((Picture.of(Image.new("RGB", (1, 2000)), ""),), "What?")
    with pytest.raises(ValueError, match="aspect ratio"):
        list(Prompts(TinyQwen().processor(), [thin]))
