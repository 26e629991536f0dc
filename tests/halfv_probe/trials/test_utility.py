"""Eq. 3 in numbers, and a stopwatch that compares neighbours in time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import halfv_plan
from halfv_probe.trials import utility
from halfv_probe.trials.utility import latency_saved, marginal_utility
from tests.halfv_accel.miniatures import LAYERS

shares = st.floats(0, 1)
PLANS = [
    halfv_plan(ivr_layer=4, ivr_retention=0.5),
    halfv_plan(ivr_layer=1, ivr_retention=0.2),
    halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=3),
]


@pytest.mark.parametrize(("drop", "saved", "expected"), [(0.0, 0.5, 0.0), (0.51, 0.5, 1.0), (0.02, 0.0, 2.0)])
def test_utility_is_the_loss_by_what_is_saved(drop, saved, expected):
    assert marginal_utility(drop, saved) == pytest.approx(expected)


@given(drop=shares, saved=shares, more=shares)
def test_losing_less_or_saving_more_is_never_worse(drop, saved, more):
    assert marginal_utility(drop, saved) * (saved + 0.01) == pytest.approx(drop, abs=1e-9)
    assert marginal_utility(drop, max(saved, more)) <= marginal_utility(drop, saved)
    assert marginal_utility(max(drop, more), saved) >= marginal_utility(drop, saved)


@given(drop=shares, saved=st.floats(-9, 0))
def test_a_plan_that_saves_nothing_is_no_division_by_zero(drop, saved):
    assert marginal_utility(drop, saved) == marginal_utility(drop, 0.0) == pytest.approx(100 * drop)


class Clock:
    """A clock that stands still but for the rows that layers process; each row takes `pace(forward)` seconds."""

    def __init__(self, model, pace):
        self.now, self.forwards, self.pace, self.inside = 0.0, [], pace, False
        core, layers = model.model, model.model.language_model.layers
        self.handles = [core.register_forward_pre_hook(self.begin), core.register_forward_hook(self.end)]
        self.handles += [layer.mlp.register_forward_pre_hook(self.tick) for layer in layers]

    def begin(self, *_):
        self.inside = True
        self.forwards.append([])

    def end(self, *_):
        self.inside = False

    def tick(self, _module, args):
        self.now += args[0].shape[1] * self.pace(len(self.forwards) - 1)
        if self.inside:  # installing a plan runs single layers, too
            self.forwards[-1].append(args[0].shape[1])

    def __call__(self):
        return self.now

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def lengths(inputs, plan):
    """Rows that each layer processes, by hand."""
    visual = int((inputs["input_ids"] == 1).sum())
    text = inputs["input_ids"].shape[1] - visual
    rows = []
    for layer in range(LAYERS):
        kept = visual
        for stage in plan.stages if plan is not None else ():
            if layer >= stage.layer:
                kept = int(visual * stage.retention)
        rows.append(text + kept)
    return rows


@pytest.fixture
def timed(mini, monkeypatch):
    """``timed(pace, repeats)``: what the stopwatch says, the forwards that it saw, and what each should take."""

    def measure(pace=lambda forward: 1.0, repeats=3):
        model, inputs = mini.model(), mini.batch([mini.prompt(0)])
        with Clock(model, pace) as clock:
            monkeypatch.setattr(utility.time, "perf_counter", clock)
            found = latency_saved(model, inputs, PLANS, repeats)
            monkeypatch.undo()
        return found, clock.forwards, [lengths(inputs, plan) for plan in (None, *PLANS)]

    return measure


def test_what_is_saved_is_the_share_of_the_untouched_time(timed):
    found, _, (untouched, *reduced) = timed()
    assert found == pytest.approx([1 - sum(rows) / sum(untouched) for rows in reduced])
    assert min(found) > 0.05


def test_plans_take_turns_and_each_is_warmed_up_once(timed):
    found, forwards, expected = timed(pace=lambda forward: 1e9 if forward == 0 else 1.0, repeats=1)
    assert forwards == 2 * expected
    assert found == timed()[0]  # the first round counts for nothing


def test_a_machine_that_slows_down_does_not_change_the_order(timed):
    """From round to round everything takes twice as long."""
    found, *_ = timed(pace=lambda forward: 2.0 ** (forward // (len(PLANS) + 1)), repeats=5)
    assert found == pytest.approx(timed()[0])


def test_one_interrupted_round_is_outvoted(timed):
    found, *_ = timed(pace=lambda forward: 1000.0 if forward == 9 else 1.0, repeats=5)
    assert found == pytest.approx(timed()[0])


def test_the_model_comes_out_as_it_went_in(mini, untouched, breaking):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    generate = model.generate
    with untouched(model):
        latency_saved(model, inputs, PLANS, 1)
    with breaking(model), untouched(model), pytest.raises(RuntimeError, match="broken"):
        latency_saved(model, inputs, PLANS, 1)
    assert model.generate == generate
