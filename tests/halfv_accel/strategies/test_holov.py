"""Crops with quotas, attention and variety inside."""

import math

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import HoloV, resolve
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself, tokens
from tests.halfv_accel.strategies.test_cls_attention import scores
from tests.halfv_accel.strategies.test_dividing import divided
from tests.halfv_accel.strategies.views import random_view


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b) or 1)


def mean(numbers):
    return sum(numbers) / len(numbers)


def holistic(crop, attention, states, variety):
    variance = []
    for i in crop:
        with_others = [cosine(states[i], states[j]) for j in crop if j != i]
        variance.append(mean([(x - mean(with_others)) ** 2 for x in with_others]) if with_others else 0.0)
    own = [attention[i] for i in crop]
    scale = mean(own) / mean(variance) if mean(variance) > 1e-12 else 0.0
    return [round(a + variety * scale * v, 9) for a, v in zip(own, variance, strict=True)]


def oracle(strategy):
    def choose(view, kept):
        attention, states = scores(view), view.states[0].double().tolist()
        count, crops = len(attention), [[] for _ in range(strategy.crops)]
        for token in range(count):
            crops[token * strategy.crops // count].append(token)
        crops = [crop for crop in crops if crop]
        score = [holistic(crop, attention, states, strategy.variety) for crop in crops]
        weights = [round(mean(each) ** strategy.sharpness, 7) for each in score]
        chosen = []
        for crop, each, quota in zip(crops, score, divided(kept, weights, [len(crop) for crop in crops]), strict=True):
            best = sorted(range(len(crop)), key=lambda i, each=each: (-each[i], i))[:quota]
            chosen += [crop[i] for i in best]
        return chosen

    return choose


@pytest.mark.parametrize(
    "strategy",
    [HoloV(), HoloV(4), HoloV(3, variety=2.0), HoloV(5, 0.0, 0.5), HoloV(1, 1.0), HoloV(4, sharpness=0)],
    ids=str,
)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_oracle(seed, budget, strategy):
    agrees(strategy, random_view(seed=seed), budget, oracle(strategy))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(4))
def test_among_equals_the_earlier_stays(seed, budget):
    agrees(HoloV(4, variety=0.0), random_view(seed=seed, coarse=True), budget, oracle(HoloV(4, variety=0.0)))


def test_variety_decides_where_attention_is_equal():
    view = random_view((16,), (3,), seed=1)
    view.signals["vision", "attention"] = torch.full((1, 2, 16), 0.01)
    varied, plain = (HoloV(4, variety).select(view, torch.tensor([8])) for variety in (1.0, 0.0))
    assert tokens(plain) == [[0, 1, 4, 5, 8, 9, 12, 13]]
    assert not torch.equal(varied, plain)
    assert varied.view(4, 4).sum(1).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_rounding_is_no_variety(seed):
    """All tokens point in one direction, so that their cosines are 1 but for rounding."""
    view = random_view(seed=seed)
    view.states = view.states[:1, :1] * (1 + view.states[..., :1].abs())
    chosen = HoloV(2, variety=5.0).select(view, torch.tensor([4, 4, 0, 7]))
    assert torch.equal(chosen, HoloV(2, variety=0.0).select(view, torch.tensor([4, 4, 0, 7])))


def test_without_attention_crops_share_by_size():
    view = random_view(seed=2)
    view.signals["vision", "attention"] = torch.zeros_like(view.signals["vision", "attention"])
    assert HoloV(4).select(view, torch.tensor([4, 4, 0, 8])).sum(1).tolist() == [4, 4, 0, 8]


@pytest.mark.parametrize("strategy", [HoloV(), HoloV(3), HoloV(32)], ids=str)
def test_it_counts_its_operations(strategy):
    counts_itself(strategy, random_view((16,), (3,)), 6)


@pytest.mark.parametrize("wrong", [dict(crops=0), dict(variety=-1), dict(sharpness=float("nan")), dict(variety="x")])
def test_parameters_are_checked(wrong):
    assert resolve("holov") == HoloV(16, 0.09, 1.0, -2)
    with pytest.raises(HalfVError, match=f"{next(iter(wrong))} is"):
        HoloV(**wrong)
