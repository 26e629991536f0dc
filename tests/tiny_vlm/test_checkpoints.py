"""The committed checkpoints: small, deep enough to prune, and able to see."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny_vlm
from halfv_accel import Plan, Stage, accelerate
from halfv_accel.strategies import KeepNone, LastTokenAttention
from halfv_data import scenes
from tiny_vlm.evaluate import evaluate, prompt, weights_fingerprint

FLOOR = 0.75  # macro over nine tasks; guessing reaches about 0.2
REPORTS = Path(__file__).parents[2] / "reports" / "tiny_vlm"
LEAST_MACRO = {"tiny-qwen2.5-vl": 0.95, "tiny-llava": 0.92, "tiny-qwen2.5-vl-sparse": 0.95}
LEAST_LOSS = {"grey picture": 0.40, "no visual tokens from layer 2": 0.50, "no visual tokens from layer 5": 0.25}


@pytest.fixture(scope="module", params=tiny_vlm.NAMES)
def embedded(request):
    torch.manual_seed(0)
    return request.param, *tiny_vlm.load(request.param)


def test_a_checkpoint_is_small_and_whole(embedded):
    name, model, _ = embedded
    folder = tiny_vlm.checkpoint(name)
    files = {file.name: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    assert sum(files.values()) <= 12 * 2**20
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_picture_is_144_visual_tokens_in_10_layers(embedded):
    _, model, processor = embedded
    (sample,) = scenes(1, seed=0)
    ids = processor(images=[sample.image], text=[prompt(processor, sample.question)], return_tensors="pt")["input_ids"]
    assert (ids == model.config.image_token_id).sum() >= 144
    assert model.config.text_config.num_hidden_layers >= 10


def test_it_sees(embedded):
    _, model, processor = embedded
    samples = list(scenes(45, seed=1, split="heldout"))
    seeing = evaluate(model, processor, samples, batch_size=15)
    blinded = evaluate(model, processor, samples, batch_size=15, blank_image=True)
    assert seeing.macro >= FLOOR
    assert blinded.macro <= 0.5


@pytest.mark.parametrize("name", tiny_vlm.NAMES)
def test_the_report_speaks_of_this_checkpoint_and_it_is_good_enough(name):
    """Held-out accuracy as `make accuracy` measured it; a small evaluation above shows that the report is plausible."""
    report = json.loads((REPORTS / name / "accuracy.json").read_text())
    assert report["provenance"]["model"]["weights"] == weights_fingerprint(name)
    results = report["results"]
    untouched = results["untouched"]
    assert untouched["macro"] >= LEAST_MACRO[name]
    assert min(untouched["accuracy"].values()) >= 0.85
    for condition, loss in LEAST_LOSS.items():
        assert untouched["macro"] - results[condition]["macro"] >= loss, condition


@pytest.mark.parametrize(("name", "free", "costly"), [("tiny-qwen2.5-vl", 0, 1), ("tiny-qwen2.5-vl-sparse", 1, 0)])
def test_one_qwen_needs_no_deep_updates_and_the_other_needs_few_tokens(name, free, costly):
    """From layer 7 on, to freeze everything and to keep a twentieth: each is free for one, and ruins the other."""
    model, processor = tiny_vlm.load(name)
    samples = list(scenes(90, seed=2, split="heldout"))

    def macro(strategy, retention, then):
        plan = Plan((Stage("ssr", 7, strategy, retention, then),))
        return evaluate(model, processor, samples, batch_size=15, accelerated=lambda m: accelerate(m, plan)).macro

    untouched = evaluate(model, processor, samples, batch_size=15).macro
    reached = macro(KeepNone(), 0.0, "freeze"), macro(LastTokenAttention(rotary=True), 0.05, "drop")
    assert reached[free] >= untouched - 0.02
    assert reached[costly] <= untouched - 0.20
