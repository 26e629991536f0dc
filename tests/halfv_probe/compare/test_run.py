"""A comparison says what `accelerate` does, one plan and one prompt at a time; whatever fails, the others go on."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd
import pytest
import torch

from halfv_accel import Downsample, HalfVError, Plan, Stage, accelerate, halfv_plan
from halfv_accel.answers import is_right
from halfv_accel.flops import as_it_ran, prefill_flops, selection_flops
from halfv_accel.prompts import chat_inputs
from halfv_accel.strategies import Needs, RandomChoice
from halfv_data import scenes
from halfv_probe.calibration.journal import Journal
from halfv_probe.calibration.measurements import Measurements
from halfv_probe.compare import run as run_module
from halfv_probe.compare.entrants import UNTOUCHED, Entrant, all_entrants
from halfv_probe.compare.rows import COLUMNS
from halfv_probe.compare.run import ask_untouched, compare, typical_prompt
from halfv_probe.trials.prompts import Prompts
from halfv_probe.trials.replies import REPLY_TOKENS
from tiny_vlm import load

SAMPLES = [replace(sample, answer=None) if place == 2 else sample for place, sample in enumerate(scenes(5, seed=3))]
SAMPLES[1] = replace(SAMPLES[1], task="unlabelled")
BATCH = 2


@dataclass(frozen=True)
class Broken:
    """Raises on prompts whose number of visual tokens is below `least`, or always."""

    kind: str = "value"

    needs: ClassVar[Needs] = Needs()

    def select(self, view, budget):
        if self.kind == "value":
            raise ValueError("no idea. None at all")
        if self.kind == "memory":
            raise torch.OutOfMemoryError("too much")
        raise HalfVError("this strategy needs\n a rest")

    def flops(self, sizes):
        return 0


@dataclass(frozen=True)
class Uncounted:
    """Works, but does not say what it costs."""

    needs: ClassVar[Needs] = Needs()

    def select(self, view, budget):
        return RandomChoice().select(view, budget)


@dataclass(frozen=True)
class BrokenInGenerate(Uncounted):
    """Works on prompts with a reply behind them only: the hidden reply makes batches wider."""

    broken: ClassVar[list[bool]] = []

    def select(self, view, budget):
        if self.broken:
            raise RuntimeError("not again")
        return super().select(view, budget)

    def flops(self, sizes):
        return 0


def given(title, *stages, **others):
    return Entrant("plan", title, None, Plan(stages, **others))


PLANS = [
    UNTOUCHED,
    given("random", Stage("r", 0, "random_choice", 0.1)),
    given("adaptive", Stage("p", 0, "prumerge", 0.8, least=0.02), Stage("f", 4, "fastv", 0.1)),
    given("freeze", Stage("f", 3, "keep_none", 0.0, "freeze")),
    given("skip", skip=(2, 3, 4, 5)),
    given("spared", Stage("r", 0, "random_choice", 0.1), min_visual_tokens=10_000),
    given("kept", Stage("r", 0, "random_choice", 1.0)),
    Entrant("profile", "reference", None, halfv_plan(ivr_layer=2, ivr_retention=0.05, fidelity="reference")),
]
SHRINKING = [
    given("shrunk", downsample=Downsample(0.3)),
    given("shrunk, then", Stage("p", 0, "prumerge", 0.8, least=0.02), downsample=Downsample(0.5)),
]


@pytest.fixture(scope="module", params=["tiny-qwen2.5-vl", "tiny-llava"])
def vlm(request):
    return request.param, *load(request.param, dtype="float32")


@pytest.fixture(scope="module")
def qwen():
    return load("tiny-qwen2.5-vl", dtype="float32")


def measured(model, processor, samples=SAMPLES, journal=None, progress=lambda *_: None):
    return Measurements(model, Prompts(processor, samples, "cpu", BATCH), "paper", journal or Journal(), progress)


def compared(model, processor, entrants, **others):
    measure = measured(model, processor, **others)
    found = compare(measure, entrants, ask_untouched(measure))
    measure.journal.close()
    return found


def by_hand(model, processor, sample, plan):
    """Reply, average and FLOPs of one prompt."""
    whole = chat_inputs(processor, sample.images, sample.question)
    inputs = whole if plan is None else chat_inputs(processor, sample.images, sample.question, "cpu", plan.downsample)
    options = dict(max_new_tokens=REPLY_TOKENS, do_sample=False)
    if plan is None:
        ids = model.generate(**whole, **options)
        return processor.decode(ids[0, whole["input_ids"].shape[1] :], skip_special_tokens=True).strip(), None, 1.0
    with accelerate(model, plan.inside) as run:
        ids = model.generate(**inputs, **options)
    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    left = [stage.after[0] for stage in run.last.stages]
    visual = run.last.visual_tokens[0]
    words = inputs["input_ids"].shape[1] - visual
    with accelerate(model, Plan((Stage("r", 0, "random_choice", 0.9),))) as counting:
        model.generate(**whole, max_new_tokens=1)
    before = counting.last.visual_tokens[0]
    cost = prefill_flops(model.config, visual, words, as_it_ran(plan.inside, left))
    cost += selection_flops(model.config, visual, plan.inside, words, kept=left)
    untouched = prefill_flops(model.config, before, whole["input_ids"].shape[1] - before)
    return text, run.last.average_visual_tokens[0], cost / untouched


def test_a_comparison_is_what_accelerate_does(vlm):
    name, model, processor = vlm
    entrants = PLANS + (SHRINKING if "qwen" in name else [])
    results, failed = compared(model, processor, entrants)
    assert failed == [] and tuple(results.columns) == COLUMNS
    assert list(results["entrant"]) == [each.name for each in entrants for _ in SAMPLES]
    untouched = [by_hand(model, processor, sample, None)[0] for sample in SAMPLES]
    for each in entrants:
        rows = results[results["entrant"] == each.name]
        assert list(rows["sample"]) == list(range(5))
        for place, (sample, row) in enumerate(zip(SAMPLES, rows.itertuples(), strict=True)):
            text, average, flops = by_hand(model, processor, sample, each.plan)
            assert row.reply == text and row.same == (text == untouched[place])
            assert row.average_visual_tokens == (row.visual_tokens if average is None else pytest.approx(average))
            assert row.flops == pytest.approx(flops, rel=1e-9)
            assert row.question == sample.question and row.fingerprint == sample.fingerprint
            assert row.answer == sample.answer
            right = results["right"][row.Index]
            assert right is pd.NA if sample.answer is None else right == is_right(text, sample.answer)
    same, kl = results["same"], results["kl"]
    assert set(results["entrant"][kl.isna()]) == {each.name for each in entrants if each in SHRINKING}
    assert kl[results["entrant"].isin(["untouched", "plan spared", "plan kept"])].max() < 2e-5
    assert 0.2 < same.mean() < 0.95  # or the comparison would show nothing
    assert list(results["task"][:2]) == [SAMPLES[0].task, ""]
    adaptive = results[results["entrant"] == "plan adaptive"]
    assert adaptive["average_visual_tokens"].nunique() > 1 or "llava" in name


def test_methods_reach_their_budget(qwen):
    measure = measured(*qwen)
    asked = ask_untouched(measure)
    entrants, _ = all_entrants(typical_prompt(measure, asked), ["pdrop", "divprune", "halfv"], [0.5])
    results, failed = compare(measure, entrants, asked)
    assert failed == []
    share = results["average_visual_tokens"] / results["visual_tokens"]
    assert share[results["budget"].notna()].sub(0.5).abs().max() < 0.01
    assert results.dtypes["seed"] == "Int64" and results["seed"].dropna().unique().tolist() == [0, 1, 2]


def test_who_fails_is_named_and_the_others_go_on(qwen, monkeypatch):
    working = PLANS[1:3]
    kinds = {"ValueError: no idea": "value", "OutOfMemoryError: too much": "memory", "this strategy needs a rest": ""}
    broken = [given(kind or "own", Stage("b", 1, Broken(kind), 0.5)) for kind in kinds.values()]
    deep = given("deep", Stage("f", 99, "fastv", 0.5))
    uncounted = given("uncounted", Stage("u", 0, Uncounted(), 0.5))
    shrunk = given("shrunk", Stage("b", 1, Broken(), 0.5), downsample=Downsample(0.5))
    entrants = [UNTOUCHED, broken[0], working[0], *broken[1:], deep, uncounted, shrunk, working[1]]
    tried = []
    trials = run_module.run_trials
    monkeypatch.setattr(run_module, "run_trials", lambda *a: tried.append(len(a[3])) or trials(*a))
    results, failed = compared(*qwen, entrants)
    reasons = dict(failed)
    assert [reasons[each.name] for each in broken] == list(kinds)
    assert "layer 99" in reasons["plan deep"] and "flops(sizes)" in reasons["plan uncounted"]
    assert reasons["plan shrunk"] == "ValueError: no idea" and len(failed) == 6
    alone, none = compared(*qwen, [UNTOUCHED, *working])
    assert none == []
    order = [each.name for each in (UNTOUCHED, *working)]
    pd.testing.assert_frame_equal(results, alone)
    assert list(results["entrant"].unique()) == order
    assert tried == [7, 1, 1, 1, 1, 1, 1, 1, 3, 3, 2, 2, 2]  # those that failed are not tried again


def test_who_fails_while_it_generates_is_named_too(qwen, monkeypatch):
    each = given("later", Stage("b", 0, BrokenInGenerate(), 0.02))
    generate = run_module.greedy_replies

    def failing(*asked):
        monkeypatch.setattr(BrokenInGenerate, "broken", [True])
        return generate(*asked)

    measure = measured(*qwen)
    asked = ask_untouched(measure)
    monkeypatch.setattr(run_module, "greedy_replies", failing)
    results, failed = compare(measure, [UNTOUCHED, each], asked)
    assert failed == [("plan later", "RuntimeError: not again")]
    assert list(results["entrant"].unique()) == ["untouched"]
    model = qwen[0]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_comparison_goes_on_with_what_is_known(qwen, tmp_path, monkeypatch):
    """More entrants and more samples: only these are measured; the result is that of one go."""
    model, processor = qwen
    path = tmp_path / "journal"
    few, more = [UNTOUCHED, PLANS[1], SHRINKING[0]], [UNTOUCHED, *PLANS[1:4], *SHRINKING]
    compared(model, processor, few, samples=SAMPLES[:4], journal=Journal(path))
    known = path.read_bytes()
    again = compared(model, processor, few, samples=SAMPLES[:4], journal=Journal(path, resume=True))
    assert path.read_bytes() == known
    tried = []
    trials = run_module.run_trials
    monkeypatch.setattr(
        run_module, "run_trials", lambda *a: tried.append((len(a[1]["input_ids"]), len(a[3]))) or trials(*a)
    )
    grown, _ = compared(model, processor, more, journal=Journal(path, resume=True))
    assert tried == [(2, 2), (2, 2), (1, 3)]
    whole, _ = compared(model, processor, more)
    pd.testing.assert_frame_equal(grown, whole)
    pd.testing.assert_frame_equal(
        again[0], whole[whole["entrant"].isin([e.name for e in few]) & (whole["sample"] < 4)].reset_index(drop=True)
    )


def test_progress_ends_where_it_said(qwen):
    told = []
    compared(*qwen, [UNTOUCHED, PLANS[1], PLANS[-1], SHRINKING[0]], progress=lambda *step: told.append(step))
    last = {step: (done, total) for step, done, total in told}
    assert list(last) == ["replies", "plans", "plans (reference)", "changed replies", "shrunk pictures"]
    assert all(done == total for done, total in last.values())
    for step in last:
        counts = [done for name, done, _ in told if name == step]
        assert counts == sorted(counts)


def test_prepared_inputs_are_refused(qwen):
    model, processor = qwen
    inputs = Prompts(processor, SAMPLES, "cpu", 5)[0]
    with pytest.raises(ValueError, match="give Prompts"):
        ask_untouched(Measurements(model, [inputs], "paper", Journal(), lambda *_: None))
