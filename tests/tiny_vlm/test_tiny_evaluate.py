"""Evaluation counts exact answers, and its controls take the picture away and nothing else."""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from PIL import Image

import tiny_vlm
from halfv_data import Sample, scenes
from tiny_vlm import evaluate as module
from tiny_vlm.evaluate import Scores, answers, conditions, evaluate, prompt, table
from tiny_vlm.invisible import invisible_visual_tokens

SAMPLES = list(scenes(4, seed=0, split="heldout", tasks=["colour", "relation"]))


def asked(tiny, sample):
    return tiny.processor(images=[sample.image], text=[prompt(tiny.processor, sample.question)], return_tensors="pt")


@torch.no_grad()
def logits(tiny, sample, **options):
    return tiny.model(**asked(tiny, sample), use_cache=False, **options).logits


def grey(sample):
    return replace(sample, pictures=Sample.of(Image.new("RGB", sample.image.size, (128,) * 3), "").pictures)


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_scores_count_exact_answers(tiny, monkeypatch):
    given = iter([f" {SAMPLES[0].answer.upper()} ", SAMPLES[1].answer, "no idea", SAMPLES[3].answer + " "])
    monkeypatch.setattr(module, "answers", lambda *_: [next(given)])
    scores = evaluate(tiny.model, tiny.processor, SAMPLES)
    assert scores == Scores({"colour": 0.5, "relation": 1.0}, 0.75, 4, {"colour": 2, "relation": 2})


def test_a_model_that_is_always_right_scores_one(tiny):
    """The answers that the model itself gives are right by definition; so nothing is lost on the way to the score."""
    own = [replace(s, answer=answers(tiny.model, tiny.processor, [s], max_new_tokens=3)[0]) for s in SAMPLES]
    assert evaluate(tiny.model, tiny.processor, own, max_new_tokens=3).macro == 1.0
    assert evaluate(tiny.model, tiny.processor, own, max_new_tokens=3, batch_size=3).macro == 1.0


def test_the_blank_control_shows_grey(tiny):
    sample = SAMPLES[0]
    blank = answers(tiny.model, tiny.processor, [sample], blank_image=True, max_new_tokens=3)
    assert blank == answers(tiny.model, tiny.processor, [grey(sample)], max_new_tokens=3)


def test_from_layer_zero_on_the_picture_is_nowhere(tiny):
    sample = SAMPLES[0]
    assert not torch.allclose(logits(tiny, sample)[0, -1], logits(tiny, grey(sample))[0, -1], atol=1e-4)
    with invisible_visual_tokens(tiny.model, 0):
        text_only = logits(tiny, sample)[0, -1]
        assert torch.equal(text_only, logits(tiny, grey(sample))[0, -1])
        assert evaluate(tiny.model, tiny.processor, SAMPLES[:1], without_visual_from=0, max_new_tokens=2).n == 1


def test_behind_the_last_layer_nothing_is_hidden(tiny):
    sample, layers = SAMPLES[0], len(tiny.model.model.language_model.layers)
    untouched = logits(tiny, sample)
    with invisible_visual_tokens(tiny.model, layers):
        assert torch.equal(logits(tiny, sample), untouched)
    with invisible_visual_tokens(tiny.model, 5):
        assert not torch.allclose(logits(tiny, sample)[0, -1], untouched[0, -1], atol=1e-5)


def test_the_control_uses_the_mask_it_is_given(tiny):
    """A padded row answers as the same row alone, with text blinded; so padding stays hidden."""
    short, long = (replace(SAMPLES[0], question=q) for q in ("What color is the star?", SAMPLES[1].question))
    with invisible_visual_tokens(tiny.model, 2):
        alone = [answers(tiny.model, tiny.processor, [s], max_new_tokens=3, use_cache=False)[0] for s in (short, long)]
        assert answers(tiny.model, tiny.processor, [short, long], max_new_tokens=3, use_cache=False) == alone


def test_the_control_works_under_eager_attention(tiny):
    sample = SAMPLES[0]
    with invisible_visual_tokens(tiny.model, 2):
        sdpa = logits(tiny, sample)
    tiny.model.set_attn_implementation("eager")
    try:
        with invisible_visual_tokens(tiny.model, 2):
            torch.testing.assert_close(logits(tiny, sample), sdpa, atol=2e-5, rtol=1e-4)
    finally:
        tiny.model.set_attn_implementation("sdpa")


def test_the_control_leaves_the_model_as_it_was(tiny):
    before, untouched = hooks(tiny.model), logits(tiny, SAMPLES[0])
    with pytest.raises(RuntimeError, match="in between"), invisible_visual_tokens(tiny.model, 3):
        assert hooks(tiny.model) != before
        raise RuntimeError("in between")
    assert hooks(tiny.model) == before
    assert torch.equal(logits(tiny, SAMPLES[0]), untouched)


def test_the_control_refuses_what_it_cannot_do(tiny):
    with pytest.raises(ValueError, match="from_layer is 11: this model has decoder layers 0 to 9"):
        evaluate(tiny.model, tiny.processor, SAMPLES, without_visual_from=11)
    with pytest.raises(ValueError, match="pass use_cache=False"), invisible_visual_tokens(tiny.model, 2):
        answers(tiny.model, tiny.processor, SAMPLES[:1])


def test_evaluation_runs_inside_the_given_context(tiny, monkeypatch):
    events = []

    @contextmanager
    def accelerated(model):
        events.append(("enter", model))
        yield
        events.append(("exit", model))

    monkeypatch.setattr(module, "answers", lambda *_: events.append("asked") or ["x"])
    evaluate(tiny.model, tiny.processor, SAMPLES[:2], accelerated=accelerated)
    assert events == [("enter", tiny.model), "asked", "asked", ("exit", tiny.model)]


def test_what_cannot_be_scored_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(module, "answers", lambda *_: ["x"])
    with pytest.raises(ValueError, match="there are no samples to evaluate on"):
        evaluate(tiny.model, tiny.processor, [])
    with pytest.raises(ValueError, match="has no answer: evaluation needs samples with answers"):
        evaluate(tiny.model, tiny.processor, [replace(SAMPLES[0], answer=None)])
    with pytest.raises(ValueError, match="batch_size is 0: it must be at least 1"):
        evaluate(tiny.model, tiny.processor, SAMPLES, batch_size=0)


def test_the_command_writes_table_and_report(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tiny_vlm, "CHECKPOINTS", tiny.folder.parent)
    monkeypatch.setattr(module, "answers", lambda *_: ["2"])
    out = tmp_path / "deep" / "scores.json"
    monkeypatch.setattr(sys, "argv", ["evaluate", tiny.family.name, "--samples", "9", "--out", str(out)])
    module.main()
    report = json.loads(out.read_text())
    names = ["untouched", "grey picture", "no visual tokens from layer 2", "no visual tokens from layer 5"]
    assert list(report["results"]) == names == list(conditions(10, None))
    assert report["results"]["untouched"]["counts"]["colour"] == 1
    assert report["provenance"]["samples"]["split"] == "heldout"
    assert report["provenance"]["versions"]["torch"] == torch.__version__
    assert not list(out.parent.glob("*.partial"))
    printed = capsys.readouterr()
    assert printed.out.startswith("| task (n) | untouched | grey picture |")
    assert "| **macro** (9) |" in printed.out
    assert "untouched: 0/9" in printed.err


def test_the_table_is_markdown():
    scores = Scores({"colour": 0.5, "number": 1.0}, 0.75, 3, {"colour": 2, "number": 1})
    assert table({"untouched": scores, "blind": scores}).splitlines() == [
        "| task (n) | untouched | blind |",
        "|---|---|---|",
        "| colour (2) | 0.500 | 0.500 |",
        "| number (1) | 1.000 | 1.000 |",
        "| **macro** (3) | 0.750 | 0.750 |",
    ]
