"""The self-check passes on what is right, and fails on every way of being wrong that we could think of."""

import copy

import pytest
import torch

import tiny_vlm
from halfv_accel import accelerate, halfv_plan
from halfv_accel.engine import prefill as engine
from halfv_accel.engine.rows import Rows
from halfv_accel.engine.view import LayerView
from halfv_accel.selfcheck import Check, __main__, selfcheck
from halfv_accel.strategies import AnchorCover, LastTokenAttention
from halfv_accel.strategies.shared.ranking import top_k_mask

from .miniatures import MiniLlava
from .refusing import refusal

MINI = MiniLlava()
PROMPTS = [MINI.prompt(1), MINI.prompt(2, 2, 9)]


def failures(model=None, batch=None):
    """Names of failed checks, without the batch."""
    checks = selfcheck(model or MINI.model(), batch or MINI.batch(PROMPTS))
    return {check.name.split(", batch")[0] for check in checks if not check.ok}


def test_every_family_passes(mini):
    assert not failures(mini.model(), mini.batch([mini.prompt(1), mini.prompt(2, 2, 9), mini.prompt(3, 0)]))


def test_half_precision_passes(attention):
    assert not failures(copy.deepcopy(MINI.model(attention)).bfloat16())


def test_eager_attention_passes():
    assert not failures(MINI.model("eager"))


def test_the_effect_of_pruning_stands_out():
    checks = selfcheck(MINI.model(), MINI.batch(PROMPTS))
    pruned = [check for check in checks if check.name.startswith("prune")]
    assert len(pruned) == 6
    assert all(check.effect > 100 * check.tolerance for check in pruned)


def sees_padding(monkeypatch):
    """Padding places of the shorter row can be attended to."""
    original = engine.prefill_mask
    every = lambda rows: rows and Rows(rows.index, None, rows.length)  # noqa: E731
    monkeypatch.setattr(engine, "prefill_mask", lambda base, q, frozen, *more: original(base, every(q), frozen, *more))


def attends_to_dropped(monkeypatch):
    """A dropped token takes part in attention, and is reported as dropped."""
    original = engine.Prefill.run

    def run(self, stage, before, here):
        found = original(self, stage, before, here)
        if stage.then == "drop":
            kept = self.report.kept[-1]
            self.report.kept[-1] = kept & (kept.cumsum(1) > 1)
        return found

    monkeypatch.setattr(engine.Prefill, "run", run)


def moves_frozen(monkeypatch):
    """Frozen tokens go on being updated, a little."""
    original = engine.Prefill.leave

    def leave(self, output):
        result = original(self, output)
        still = self.alive & ~self.active
        return result if result is None else torch.where(still[..., None], result + 0.1 * result.roll(1, -1), result)

    monkeypatch.setattr(engine.Prefill, "leave", leave)


def scores_with_rotary(monkeypatch):
    """Anchors are scored with position embeddings."""
    original = LayerView.last_token_scores
    monkeypatch.setattr(LayerView, "last_token_scores", lambda self, rotary, scored_by: original(self, True, scored_by))


def covers_nothing(monkeypatch):
    """The whole budget goes to anchors."""
    relevant = LastTokenAttention(rotary=False).select
    monkeypatch.setattr(AnchorCover, "select", lambda self, view, budget: relevant(view, budget))


def keeps_the_least_relevant(monkeypatch):
    worst = lambda self, view, budget: top_k_mask(-view.last_token_scores(self.rotary), view.present, budget)  # noqa: E731
    monkeypatch.setattr(LastTokenAttention, "select", worst)


SURGERY = {f"prune {first}{more}" for first, second in ((1, 2), (2, 4)) for more in ("", f", sparse {second}")}
FREEZE = {"prune 1, freeze 2", "prune 2, freeze 4"}
BROKEN = {
    sees_padding: SURGERY | FREEZE,
    attends_to_dropped: SURGERY,
    moves_frozen: FREEZE,
    scores_with_rotary: {"choice by anchors and cover"},
    covers_nothing: {"choice by anchors and cover"},
    keeps_the_least_relevant: {"choice by attention"},
}


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.__name__)
def test_a_broken_engine_fails(monkeypatch, fault):
    fault(monkeypatch)
    assert failures() >= BROKEN[fault]


@pytest.mark.parametrize("fault", [attends_to_dropped, moves_frozen], ids=lambda fault: fault.__name__)
def test_a_broken_engine_fails_in_half_precision(monkeypatch, fault):
    fault(monkeypatch)
    assert failures(copy.deepcopy(MINI.model()).bfloat16())


def test_an_engine_that_is_not_neutral_fails(monkeypatch):
    """One bit of one state, in a prefill that keeps everything."""
    original = engine.Prefill.leave

    def leave(self, output):
        result = original(self, output)
        return torch.nextafter(output, output + 1) if result is None else result

    monkeypatch.setattr(engine.Prefill, "leave", leave)
    assert failures() >= {"keep all, forward"}


def test_a_check_without_effect_fails():
    assert Check("", error=0.0, tolerance=1e-4, effect=1e-3).ok
    assert not Check("", error=0.0, tolerance=1e-4, effect=0.0).ok
    assert not Check("", error=float("nan"), tolerance=1e-4, effect=1.0).ok


def test_the_model_is_left_as_it_was():
    model = MINI.model()
    selfcheck(model, MINI.batch(PROMPTS[:1]))
    assert "generate" not in vars(model)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.model.language_model.layers)


def test_prompts_that_show_nothing_are_refused():
    model = MINI.model()
    refusal(lambda: selfcheck(model), "nothing to compare")
    refusal(lambda: selfcheck(model, MINI.batch([MINI.prompt(1, 0)])), "no visual tokens")
    refusal(lambda: selfcheck(model, MINI.batch(PROMPTS, "right")), "padded on the right")


def test_flash_attention_is_refused(monkeypatch):
    model = MINI.model()
    config = model.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    refusal(lambda: selfcheck(model, MINI.batch(PROMPTS)), "flash_attention_2.*sdpa")


def test_every_processor_prepares_a_ragged_batch(loaded):
    model, processor = loaded
    single, batch = __main__.random_prompts(processor)
    assert (len(single["input_ids"]), len(batch["input_ids"])) == (1, 2)
    assert batch["attention_mask"][:, -1].all()
    assert not batch["attention_mask"].all()
    assert model(**batch).logits.isfinite().all()


def test_the_command(capsys):
    assert __main__.main([str(tiny_vlm.checkpoint("tiny-llava")), "--device", "cpu"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["check", "result", "error", "tolerance", "effect"]
    assert len(lines) == 1 + 22
    assert "exact up to rounding" in last


def test_the_command_fails_in_one_line(capsys, monkeypatch, tmp_path):
    assert __main__.main([str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(__main__, "selfcheck", lambda *_, **__: [Check("one", 1.0, 0.1)])
    assert __main__.main([str(tiny_vlm.checkpoint("tiny-llava")), "--device", "cpu"]) == 1
    assert "NOT exact" in capsys.readouterr().out


def test_a_plan_in_use_is_refused():
    with accelerate(MINI.model(), halfv_plan(ivr_layer=1, ivr_retention=0.5)):
        refusal(failures, "accelerated already")


def test_a_plan_in_words_is_checked_on_a_checkpoint(capsys):
    folder = str(tiny_vlm.checkpoint("tiny-llava"))
    plan = "prumerge:0:0.1-0.4,fastv:3:0.1,skip:5"
    assert __main__.main([folder, "--device", "cpu", "--dtype", "float32", "--plan", plan]) == 0
    out = capsys.readouterr().out
    assert f"{plan}, batch of 2" in out and "HalfV is exact on this" in out
    assert __main__.main([folder, "--device", "cpu", "--plan", "fastv:70:0.5"]) == 1
    assert "acts on layer 70" in capsys.readouterr().err
