"""Dominant tokens and merged ones."""

import math
from itertools import chain

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import VisionZip, resolve
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself, merged_alike, tokens
from tests.halfv_accel.strategies.test_cls_attention import oracle as by_attention
from tests.halfv_accel.strategies.views import random_view

HALF = VisionZip(contextual=0.5)


def split(view, kept, contextual):
    count = math.floor(kept * contextual + 1e-9)
    dominant = by_attention(view, kept - count)
    others = [token for token in range(view.present.shape[1]) if token not in dominant]
    return dominant, [others[i * len(others) // count] for i in range(count)]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b) or 1)


def merge(view, places, contextual):
    _, targets = split(view, len(places), contextual)
    keys = view.vision("keys")[0].double().mean(0).tolist()
    given = {target: [target] for target in targets}
    for token in range(view.present.shape[1]):
        if token not in places and targets:
            given[max(targets, key=lambda target: (round(cosine(keys[token], keys[target]), 9), -target))].append(token)
    states = view.states[0].double()
    return {
        place: sum(states[token] for token in given.get(place, [place])) / len(given.get(place, [1]))
        for place in places
    }


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("strategy", [VisionZip(), HALF, VisionZip(1.0), VisionZip(0.0)], ids=str)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_oracle(seed, budget, strategy, coarse):
    view = random_view(seed=seed, coarse=coarse)
    agrees(strategy, view, budget, lambda one, kept: chain(*split(one, kept, strategy.contextual)))
    if not coarse:
        merged_alike(strategy, view, budget, lambda one, places: merge(one, places, strategy.contextual))


@pytest.mark.parametrize("budget", BUDGETS)
def test_means_times_sizes_add_up_to_all_that_was_merged(budget):
    """With unit vectors for states, a merged state is the weights of its mean."""
    view = random_view(seed=7)
    view.states = torch.eye(16).expand(4, -1, -1).clone()
    chosen = HALF.select(view, torch.tensor(budget))
    weights = HALF.merge(view, chosen)
    for row, places in enumerate(tokens(chosen)):
        dominant, targets = split(view.row(row), len(places), 0.5)
        assert torch.equal(weights[row, dominant], view.states[row, dominant])
        if targets:
            own = weights[row, targets, targets]
            stood_for = (weights[row, targets] / own[:, None]).sum(0)
            merged = [token for token in range(16) if view.present[row, token] and token not in dominant]
            torch.testing.assert_close(stood_for, torch.eye(16)[merged].sum(0))


def test_the_papers_budgets():
    for budget, contextual in ((64, 10), (128, 20), (192, 30)):
        view = random_view((576,), (3,))
        chosen = VisionZip().select(view, torch.tensor([budget]))
        assert int(chosen.sum()) == budget
        assert len(split(view.row(0), budget, 10 / 64)[1]) == contextual
    assert resolve("visionzip") == VisionZip(10 / 64, -2)


@pytest.mark.parametrize("kept", [1, 6, 10, 16])
def test_it_counts_its_operations(kept):
    counts_itself(HALF, random_view((16,), (3,)), kept)
    counts_itself(VisionZip(), random_view((16,), (3,)), kept)


def test_half_precision_is_merged_in_float32():
    view = random_view(seed=1)
    chosen = HALF.select(view, torch.tensor([4, 4, 0, 4]))
    exact = HALF.merge(view, chosen)
    view.states = view.states.bfloat16()
    half = HALF.merge(view, chosen)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half[chosen].float(), exact[chosen], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("share", [-0.1, 1.1, True, "half", float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(HalfVError, match="contextual is"):
        VisionZip(contextual=share)
