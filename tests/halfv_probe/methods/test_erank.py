"""erank_avg is the mean effective rank of just what a strategy before the language model is shown."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch

from halfv_accel import Plan, Stage, accelerate
from halfv_accel.strategies import Needs
from halfv_probe.methods.erank import ERANK_METHODS, EffectiveRank
from tests.halfv_probe.methods.cases import batches, measurements


@dataclass(frozen=True)
class Shown:
    """Keeps one token, and what it saw."""

    seen: list = field(default_factory=list)
    separators: ClassVar = "last"
    needs: ClassVar = Needs()

    def select(self, view, budget):
        rows = zip(view.states, view.present, strict=True)
        self.seen.extend(states[here].double().numpy() for states, here in rows)
        return view.present & (view.present.cumsum(1) <= budget[:, None])


def slow_rank(states):
    singular = np.linalg.svd(states, compute_uv=False)
    shares = singular / singular.sum()
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def slow_ranks(mini):
    shown = Shown()
    with accelerate(mini.model(), Plan((Stage("shown", 0, shown, tokens=1),))), torch.no_grad():
        for inputs in batches(mini):
            mini.model()(**inputs)
    return [slow_rank(states) for states in shown.seen]


@pytest.mark.parametrize("name", ERANK_METHODS)
def test_the_plan_holds_the_mean_over_samples(mini, name):
    expected = slow_ranks(mini)
    found = EffectiveRank(name, 0.25).find(measurements(mini), None)
    assert found.measured["effective_rank"] == pytest.approx(expected, rel=1e-4)
    [stage] = found.plan.stages
    assert (stage.layer, stage.retention) == (0, 0.25)
    assert stage.strategy.erank_avg == pytest.approx(np.mean(expected), rel=1e-4)
    with accelerate(mini.model(), found.plan) as run, torch.no_grad():
        mini.model()(**batches(mini)[0])
    assert run.last.stages[0].after == [max(1, run.last.visual_tokens[0] // 4)]


def test_without_a_budget_it_is_the_methods_default(mini):
    [stage] = EffectiveRank("adavtp").find(measurements(mini), None).plan.stages
    assert stage.retention == pytest.approx(64 / 576)


def test_all_methods_by_effective_rank_are_known():
    assert set(ERANK_METHODS) == {"adavtp", "erank_bat", "erank_divprune", "erank_vispruner"}
