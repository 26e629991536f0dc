"""Everything a plan can say beside HalfV's own two stages, with strategies that are made for the test alone."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from halfv_accel import HalfVError, accelerate
from halfv_accel.budget import token_budget
from halfv_accel.plan import Plan, Stage
from halfv_accel.selfcheck import selfcheck
from halfv_accel.strategies import KeepNone, Needs, RandomChoice
from halfv_accel.strategies.shared.ranking import top_k_mask

from .miniatures import LAYERS


@dataclass(frozen=True)
class Largest:
    """Keeps the longest states, of whatever layer."""

    needs: ClassVar[Needs] = Needs()

    def select(self, view, budget):
        return top_k_mask(view.states.norm(dim=-1), view.present, budget)


@dataclass(frozen=True)
class Folding(Largest):
    """Adds the mean of what goes to all that stays."""

    def merge(self, view, kept):
        lost = (view.present & ~kept).float()
        mean = (view.states * lost[..., None]).sum(1) / lost.sum(1, keepdim=True).clamp(min=1)
        return view.states + mean[:, None]


@dataclass(frozen=True)
class Deciding(Largest):
    """Keeps as many as have a positive second entry."""

    def count(self, view, least, most):
        return torch.minimum(most, torch.maximum(least, ((view.states[..., 1] > 0) & view.present).sum(1)))


PLANS = {
    "before the language model": Plan((Stage("a", 0, Largest(), 0.4),)),
    "merged before it": Plan((Stage("a", 0, Folding(), 0.4),)),
    "merged twice": Plan((Stage("a", 0, Folding(), 0.6), Stage("b", 2, Folding(), 0.3))),
    "skip": Plan((), skip=(1, 3)),
    "skip the first": Plan((), skip=(0,)),
    "skip among merges": Plan((Stage("a", 2, Folding(), 0.4),), skip=(1, 3, 5)),
    "skip, then freeze": Plan(
        (Stage("a", 1, Largest(), 0.5), Stage("b", 4, KeepNone(), 0.0, "freeze")), skip=(0, 2, 4)
    ),
    "frozen from the start": Plan((Stage("a", 0, KeepNone(), 0.0, "freeze"),)),
    "dropped from the start": Plan((Stage("a", 0, KeepNone(), 0.0),)),
    "adaptive": Plan((Stage("a", 0, Deciding(), 0.9, least=0.2),)),
    "adaptive, up to everything": Plan((Stage("a", 0, Deciding(), 1.0, least=0.2),)),
    "so many tokens": Plan((Stage("a", 1, Largest(), tokens=5), Stage("b", 3, Folding(), tokens=2))),
}


def prompts_of(mini):
    return [mini.prompt(5, 1, 6, 0), mini.prompt(6, 2, 4, 0), mini.prompt(7, 0, 9, int(mini.videos))]


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_computes_what_the_full_length_model_computes(mini, attention, plan):
    prompts = prompts_of(mini)
    checks = selfcheck(mini.model(attention), mini.batch(prompts[:1]), mini.batch(prompts), plan=PLANS[plan])
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize("plan", PLANS)
def test_a_batch_equals_its_rows(mini, plan):
    prompts, model = prompts_of(mini), mini.model()
    inputs = mini.batch(prompts)
    with torch.no_grad(), accelerate(model, PLANS[plan]) as run:
        together, report = model(**inputs).logits[:, -1], run.last
        for row, prompt in enumerate(prompts):
            alone = model(**mini.batch([prompt])).logits[0, -1]
            torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-4)
            assert run.last.visual_tokens == report.visual_tokens[row : row + 1]
            if run.last.visual_tokens[0]:
                assert [stage.after[0] for stage in run.last.stages] == [stage.after[row] for stage in report.stages]
                assert run.last.average_visual_tokens[0] == report.average_visual_tokens[row]


def test_to_skip_from_a_layer_on_is_to_freeze_there(mini, attention):
    """Exactly: the same rows go through the same layers."""
    model, inputs = mini.model(attention), mini.batch(prompts_of(mini))
    frozen, skipped = Plan((Stage("ssr", 3, KeepNone(), 0.0, "freeze"),)), Plan((), skip=tuple(range(3, LAYERS)))
    with torch.no_grad():
        with accelerate(model, frozen):
            wanted = model(**inputs).logits
        with accelerate(model, skipped):
            assert torch.equal(model(**inputs).logits, wanted)


def test_short_prompts_are_not_skipped(mini):
    """min_visual_tokens spares rows, and the others are computed as if they were alone."""
    prompts, model = [mini.prompt(5, 1, 6, 0), mini.prompt(6, 2, 4, 0)], mini.model()
    with torch.no_grad():
        untouched = model(**mini.batch(prompts[:1])).logits[0, -1]
        with accelerate(model, Plan((), skip=(1, 2))) as run:
            model(**mini.batch(prompts))
            fewer, more = run.last.visual_tokens
            skipped = model(**mini.batch(prompts[1:])).logits[0, -1]
        assert fewer < more
        with accelerate(model, Plan((), skip=(1, 2), min_visual_tokens=more)) as run:
            logits = model(**mini.batch(prompts)).logits[:, -1]
    torch.testing.assert_close(logits[0], untouched, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits[1], skipped, rtol=0, atol=1e-4)
    assert run.last.average_visual_tokens == [fewer, more * (LAYERS - 2) / LAYERS]


def test_the_average_counts_each_layer(mini):
    plan = Plan((Stage("a", 1, RandomChoice(), tokens=4), Stage("b", 3, KeepNone(), 0.0, "freeze")), skip=(2,))
    model = mini.model()
    with torch.no_grad(), accelerate(model, plan) as run:
        model(**mini.batch([mini.prompt(5)]))
    whole = run.last.visual_tokens[0]
    assert run.last.average_visual_tokens == [(whole + 4 + 0 + 0 + 0 + 0) / LAYERS]


@dataclass(frozen=True)
class Greedy(Deciding):
    """Wants more than it may have."""

    def count(self, view, least, most):
        return most + 1


REFUSED = {
    "least of a fixed share": (lambda: Stage("a", 1, Largest(), 0.5, least=0.1), "keeps a fixed share"),
    "least above the most": (lambda: Stage("a", 1, Deciding(), 0.5, least=0.6), "least=0.6"),
    "both budgets": (lambda: Stage("a", 1, Largest(), 0.5, tokens=4), "give one of them"),
    "no tokens": (lambda: Stage("a", 1, Largest(), tokens=0), "tokens=0"),
    "half a token": (lambda: Stage("a", 1, Largest(), tokens=2.5), "tokens=2.5"),
    "merged and frozen": (lambda: Stage("a", 1, Folding(), 0.5, "freeze"), "merges tokens and freezes"),
    "the layer before 0": (lambda: Stage("a", 0, "last_token_attention", 0.5), "at least 1, because"),
    "below 0": (lambda: Stage("a", -1, Largest(), 0.5), "at least 0"),
    "skips half a layer": (lambda: Plan((), skip=(1.5,)), "skips layer 1.5"),
    "nothing": (lambda: Plan(()), "no stage"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case):
    build, message = REFUSED[case]
    with pytest.raises(HalfVError, match=message):
        build()


def test_layers_that_are_not_there_are_not_skipped(mini):
    with pytest.raises(HalfVError, match=f"skips layer {LAYERS}"):
        accelerate(mini.model(), Plan((), skip=(1, LAYERS)))


def test_everything_as_the_most_leaves_a_choice(mini):
    """The strategy is asked, though the most that may stay is what is there already."""
    model = mini.model()
    with torch.no_grad(), accelerate(model, PLANS["adaptive, up to everything"]) as run:
        model(**mini.batch([mini.prompt(5)]))
    assert run.last.stages[0].after[0] < run.last.visual_tokens[0]


def test_bounds_that_leave_no_choice_are_not_asked_about(mini):
    model = mini.model()
    with torch.no_grad(), accelerate(model, Plan((Stage("a", 0, Greedy(), 0.3, least=0.3),))) as run:
        model(**mini.batch([mini.prompt(5), mini.prompt(6, 0, 4)]))
    visual = run.last.visual_tokens
    assert run.last.stages[0].after == [token_budget(n, 0.3) for n in visual]


def test_a_strategy_keeps_to_its_bounds(mini):
    model = mini.model()
    with accelerate(model, Plan((Stage("a", 0, Greedy(), 0.5, least=0.2),))), pytest.raises(HalfVError, match="wants"):
        model(**mini.batch([mini.prompt(5)]))
