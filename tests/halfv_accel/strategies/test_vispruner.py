"""Important tokens, and others without duplicates."""

import math

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import VisPruner, resolve
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself
from tests.halfv_accel.strategies.test_cls_attention import oracle as by_attention
from tests.halfv_accel.strategies.views import random_view


def distinct(features, places, kept, per_round):
    while len(places) > kept and kept:
        first, second = places[::2], places[1::2]

        def alike(token, others=tuple(second)):
            return max(round(cosine(features[token], features[other]), 6) for other in others)

        leaving = min(per_round, len(places) - kept, len(first))
        worst = sorted(first, key=lambda token: (-alike(token), -token))[:leaving]
        places = [place for place in places if place not in worst]
    return places if kept else []


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b) or 1)


def oracle(strategy):
    def choose(view, kept):
        count = math.floor(kept * strategy.important + 1e-9)
        important = by_attention(view, count)
        others = [token for token in range(view.present.shape[1]) if token not in important]
        return important + distinct(
            view.vision("features")[0].double().tolist(), others, kept - count, strategy.per_round
        )

    return choose


@pytest.mark.parametrize("important", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("per_round", [1, 2, 8])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_oracle(seed, budget, per_round, important):
    strategy = VisPruner(important, per_round)
    agrees(strategy, random_view(seed=seed), budget, oracle(strategy))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(3))
def test_among_duplicates_the_earlier_stays(seed, budget):
    """Features of a few kinds, at right angles, so that cosines are exactly 0 or 1."""
    view = random_view(seed=seed)
    kinds = torch.randint(0, 4, view.present.shape, generator=torch.Generator().manual_seed(seed))
    view.signals["vision", "features"] = torch.eye(10)[kinds]
    agrees(VisPruner(), view, budget, oracle(VisPruner()))


@pytest.mark.parametrize("kept", [2, 6, 16])
def test_it_counts_its_operations(kept):
    counts_itself(VisPruner(), random_view((16,), (3,)), kept)


def test_it_needs_features_before_the_projector():
    assert resolve("vispruner") == VisPruner(0.5, 8, -2)
    assert set(VisPruner(vision_layer=4).needs.vision) == {("attention", 4), ("features", 4)}


@pytest.mark.parametrize("wrong", [dict(important=2), dict(per_round=0), dict(per_round=1.5), dict(vision_layer="x")])
def test_parameters_are_checked(wrong):
    with pytest.raises(HalfVError, match=f"{next(iter(wrong))} is"):
        VisPruner(**wrong)
