"""A budget is kept as nearly as whole tokens allow, and what cannot keep to one says what it can."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import Plan, Stage, halfv_plan
from halfv_accel.decoder import Decoder
from halfv_accel.flops import prefill_flops, selection_flops
from halfv_accel.methods import Facts
from halfv_accel.names import architecture
from halfv_accel.published import METHODS
from halfv_accel.strategies import KeepNone
from halfv_probe.compare.budgets import CLOSE, OutOfReach, Typical, random_plan, scaled

SMALL = Decoder(layers=10, hidden=128, intermediate=320, heads=4, kv_heads=2, head_dim=32)
TYPICAL = Typical(SMALL, visual=144, text=20)
SCALABLE = [name for name, method in METHODS.items() if method.steps and name != "vtw"]


def average_of(plan, layers, visual):
    """Layer by layer, as one would count on paper."""
    total, active = 0, visual
    for layer in range(layers):
        for stage in plan.stages:
            if stage.layer == layer:
                active = min(active, stage.most(visual))
        total += 0 if layer in plan.skip else active
    return total / layers / visual


def flops_of(plan, visual, text):
    """Of the small decoder, written out."""
    total, active, frozen = 0, visual, 0
    for layer in range(10):
        for stage in plan.stages:
            if stage.layer == layer:
                left = min(active, stage.most(visual))
                frozen += active - left if stage.then == "freeze" else 0
                active = left
        n, m = active + text, active + text + frozen
        total += 2 * n * 128 * 128 * 2 + 2 * m * 128 * 64 * 2  # queries and output; keys and values
        total += 2 * n * 128 * 320 * 3 + 2 * n * m * 128 * 2  # feed-forward; scores and sums
    return total


PLANS = [
    random_plan(0.25),
    halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=8, ssr_retention=0.05),
    halfv_plan(ivr_layer=3, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=5),
    Plan((Stage("none", 5, "keep_none", 0.0),)),
]


@pytest.mark.parametrize("plan", PLANS)
def test_average_and_flops_are_those_counted_by_hand(plan):
    assert TYPICAL.average(plan) == pytest.approx(average_of(plan, 10, 144), rel=1e-12)
    by_hand = (flops_of(plan, 144, 20) + selection_flops(SMALL, 144, plan, 20)) / flops_of(random_plan(1.0), 144, 20)
    assert TYPICAL.flops(plan) == pytest.approx(by_hand, rel=1e-12)
    assert prefill_flops(SMALL, 144, 20, plan) == flops_of(plan, 144, 20)


def test_skipped_layers_process_nothing():
    assert TYPICAL.average(Plan((), skip=(0, 5, 9))) == pytest.approx(0.7)


def test_fastv_by_hand():
    """Two of ten layers see all: 72 on average are 54 in the other eight."""
    plan = scaled(TYPICAL, Plan((Stage("fastv", 2, "fastv", 0.5),)), 0.5)
    assert plan.stages[0].most(144) == 54
    found = scaled(TYPICAL, Plan((Stage("fastv", 2, "fastv", 0.5),)), 0.111)
    assert found == OutOfReach(pytest.approx((2 * 144 + 8) / 1440), below=True)


def test_what_freezes_early_cannot_be_above():
    plan = halfv_plan(ivr_layer=3, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=5)
    assert scaled(TYPICAL, plan, 0.75) == OutOfReach(pytest.approx(0.5), below=False)
    assert scaled(TYPICAL, plan, 0.5).stages[0].keeps_everything


def every_multiple(plan, visual):
    """All plans that some factor makes of one, the slow way."""
    shares = [stage.retention for stage in plan.stages if stage.retention]
    for factor in sorted({tokens / visual / share for share in shares for tokens in range(1, visual + 1)}):
        kept, before = [], visual
        for stage in plan.stages:
            if stage.retention:
                before = min(before, max(1, int(visual * stage.retention * factor + 1e-9)))
                kept.append(before)
        yield kept


def with_kept(plan, kept, visual):
    left = iter(kept)
    stages = (
        stage
        if isinstance(stage.strategy, KeepNone)
        else Stage(stage.name, stage.layer, stage.strategy, next(left) / visual, stage.then)
        for stage in plan.stages
    )
    return Plan(tuple(stages))


@given(
    name=st.sampled_from(SCALABLE),
    model=st.sampled_from(["llava-1.5-7b", "qwen2.5-vl-7b"]),
    visual=st.integers(1, 60),
    layers=st.integers(4, 40),
    share=st.floats(0.02, 1),
)
def test_no_other_multiple_is_nearer(name, model, visual, layers, share):
    facts = Facts(layers, architecture(model).model_type)
    plan = Plan(METHODS[name].stages(facts))
    typical = Typical(Decoder(layers, 64, 128, 4, 4, 16), visual, 9)
    wanted = max(share, 1 / visual)
    reached = [average_of(with_kept(plan, kept, visual), layers, visual) for kept in every_multiple(plan, visual)]
    found = scaled(typical, plan, share)
    if isinstance(found, OutOfReach):
        nearest = min(reached) if found.below else max(reached)
        assert found.nearest == pytest.approx(nearest)
        assert wanted < nearest * (1 - CLOSE) if found.below else wanted > nearest * (1 + CLOSE)
        return
    assert abs(average_of(found, layers, visual) - wanted) <= min(abs(r - wanted) for r in reached) + 1e-9
    kept = [stage.retention * visual for stage in found.stages if stage.retention]
    assert all(count == pytest.approx(round(count)) and 1 <= round(count) <= visual for count in kept)
    assert all(after <= before for before, after in pairwise(kept))
    assert [(s.layer, s.strategy, s.then) for s in found.stages] == [(s.layer, s.strategy, s.then) for s in plan.stages]


@given(name=st.sampled_from(SCALABLE), visual=st.integers(60, 600), share=st.floats(0.1, 1))
def test_flops_are_those_of_a_random_choice(name, visual, share):
    """Within what one token more in every layer costs."""
    config = architecture("qwen2.5-vl-7b")
    typical = Typical(config, visual, 30)
    plan = Plan(METHODS[name].stages(Facts.of(config)))
    found, wanted = scaled(typical, plan, share, "flops"), typical.flops(random_plan(typical.whole(share)))
    if isinstance(found, OutOfReach):
        assert found.below == (wanted < found.nearest)
    else:
        step = typical.flops(random_plan(1 / visual)) + 2 / visual
        assert abs(typical.flops(found) - wanted) <= max(CLOSE * wanted, step)


def test_a_budget_below_one_token_is_one_token():
    plan = scaled(TYPICAL, Plan((Stage("divprune", 0, "divprune", 0.1),)), 0.001)
    assert plan.stages[0].most(144) == 1 and random_plan(TYPICAL.whole(0.001)).stages[0].most(144) == 1
