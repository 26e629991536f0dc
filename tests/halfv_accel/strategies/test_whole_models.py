"""Every strategy on every family: what the engine chose of a real prefill is what the oracle chooses of it.

Elsewhere oracles see numbers that were drawn. Here they see a copy of what the engine showed the strategy in a ragged
batch: two pictures or three of unequal size, a video where the family takes one, a row without anything.
"""

import copy
import warnings
from dataclasses import replace

import pytest
import torch

from halfv_accel import accelerate
from halfv_accel.engine.choice import Choice
from halfv_accel.plan import Plan
from halfv_accel.strategies import (
    STRATEGIES,
    Adaptive,
    AdaVTP,
    ErankBat,
    ErankDivPrune,
    ErankVisPruner,
    KeepNone,
    Merging,
    SparseVLM,
    VisionZip,
)
from tests.halfv_accel.strategies.frozen import copied
from tests.halfv_accel.strategies.oracles import COUNTS, MERGED, ORACLES
from tests.halfv_accel.test_matrix import prompts_of, stage

NAMES = [name for name in STRATEGIES if not isinstance(STRATEGIES.resolve(name), KeepNone)]  # which is not asked
TUNED = {  # to pictures of two or three dozen tokens, of which the defaults would say nothing
    "adavtp": AdaVTP(erank_avg=20.0),
    "erank_bat": ErankBat(erank_avg=20.0),
    "erank_divprune": ErankDivPrune(erank_avg=20.0),
    "erank_vispruner": ErankVisPruner(erank_avg=20.0),
    "visionzip": VisionZip(contextual=0.5),
    "sparsevlm": SparseVLM(tau=0.6, theta=0.3),
}
ROUNDING = 1e-5  # relative; a choice may differ where the oracle's own does among numbers that differ by so much


class Seen:
    """What one stage was shown, and what became of it."""

    def __init__(self, choice):
        self.strategy, self.view = choice.stage.strategy, copied(choice.view, choice.stage.strategy)
        self.counts, self.index = choice.counts, choice.view.visual.index
        self.bounds = self.wanted = self.chosen = self.states = None


@pytest.fixture
def seen(monkeypatch):
    found = []
    count, select, merged = Choice.count, Choice.select, Choice.merged

    def counting(self, least, most):
        found.append(Seen(self))
        wanted = count(self, least, most)
        found[-1].bounds, found[-1].wanted = (least, most), wanted
        return wanted

    def selecting(self, budget):
        if not found:
            found.append(Seen(self))
        kept = select(self, budget)
        found[-1].chosen = self.chosen
        return kept

    def merging(self, here):
        after = merged(self, here)
        found[-1].states = self.view.visual.gather(after.states)
        return after

    for method in (counting, selecting, merging):
        name = {counting: "count", selecting: "select", merging: "merged"}[method]
        monkeypatch.setattr(Choice, name, method)
    return found


def run(mini, plan):
    prompts = [*prompts_of(mini), mini.prompt(8, 0, 5, 0)]
    with torch.no_grad(), accelerate(mini.model(), plan):
        mini.model()(**mini.batch(prompts, "right"))


def shaken(view, seed):
    """The same numbers, but for rounding."""
    draw, view = torch.Generator().manual_seed(seed), copy.deepcopy(view)

    def off(value):
        if isinstance(value, tuple):
            return tuple(map(off, value))
        return value * (1 + ROUNDING * torch.randn(value.shape, generator=draw))

    view.states, view.text_states = off(view.states), off(view.text_states)
    view.signals = {name: off(value) for name, value in view.signals.items()}
    return view


def agree(oracle, view, found, what):
    """Equal, or equal to what the oracle says of the same numbers but for rounding; then with a warning."""
    if oracle(view) == found:
        return
    assert any(oracle(shaken(view, seed)) == found for seed in range(30)), (what, oracle(view), found)
    warnings.warn(f"{what}: a tie but for rounding, {oracle(view)} by the oracle and {found} chosen", stacklevel=2)


@pytest.mark.parametrize("name", NAMES)
def test_the_engines_choice_is_the_oracles(mini, name, seen):
    strategy = TUNED.get(name) or STRATEGIES.resolve(name)
    bounds = dict(retention=0.9, least=0.05) if name in COUNTS else {}
    run(mini, Plan((replace(stage(name), strategy=strategy, **bounds),)))
    (one,) = seen
    assert max(one.counts) > 10 and min(one.counts) == 0
    for row, count in enumerate(one.counts):
        view = one.view.row(row)
        assert view.present.shape == (1, count)
        kept, many = one.chosen[row].nonzero()[:, 0].tolist(), int(one.chosen[row].sum())

        def chosen(of, many=many):
            return sorted(ORACLES[name](strategy, of, many))

        agree(chosen, view, kept, f"{name}, row {row}")
        if name in MERGED and kept:
            expected = MERGED[name](strategy, view, kept)
            assert sorted(expected) == kept
            for place in kept:
                torch.testing.assert_close(one.states[row, place].double(), expected[place], rtol=1e-4, atol=1e-4)
        if name in COUNTS:
            least, most = (min(side[row], count) for side in one.bounds)  # of what it is shown

            def within(of, least=least, most=most):
                return min(max(COUNTS[name](strategy, of, least, most), least), most)

            agree(within, view, one.wanted[row], f"count of {name}, row {row}")
    if name == "adavtp":  # the others may find that nothing stands out
        assert any(least < n < most for least, n, most in zip(one.bounds[0], one.wanted, one.bounds[1], strict=True))


def test_every_strategy_is_held_to_an_oracle():
    """One that joins without any is named here."""
    assert set(STRATEGIES) == set(ORACLES)
    built = {name: STRATEGIES.resolve(name) for name in STRATEGIES}
    assert {name for name, one in built.items() if isinstance(one, Merging)} == set(MERGED)
    assert {name for name, one in built.items() if isinstance(one, Adaptive)} == set(COUNTS)
