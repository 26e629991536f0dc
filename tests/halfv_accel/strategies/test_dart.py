"""DART against its description."""

import math

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import Dart, Needs, resolve
from tests.halfv_accel.strategies.inside import holds, same_flops, shares, top
from tests.halfv_accel.strategies.views import random_view


def cosine(one, other):
    products = sum(a * b for a, b in zip(one, other, strict=True))
    return products / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def norms(keys, count):
    """keys: [heads, N, d]."""
    return [sum(abs(float(x)) for head in keys for x in head[token]) for token in range(count)]


def oracle(view, row, budget, visual_pivots=4, text_pivots=4):
    tokens, words = int(view.present[row].sum()), int(view.text_present[row].sum())
    visual_keys, text_keys = (keys[row].double() for keys in view.signals["keys"])
    visual = top(norms(visual_keys, tokens), min(visual_pivots, budget))
    text = top(norms(text_keys, words), min(text_pivots, words))
    pivots = [view.states[row, i].tolist() for i in visual] + [view.text_states[row, i].tolist() for i in text]
    kept, left = list(visual), budget - len(visual)
    parts = [left // len(pivots) + (number < left % len(pivots)) for number in range(len(pivots))] if pivots else []
    for pivot, part in zip(pivots, parts, strict=True):
        others = [token for token in range(tokens) if token not in kept]
        distances = [-cosine(pivot, view.states[row, token].tolist()) for token in others]
        kept += [others[i] for i in top(distances, part)]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ratio", [0, 0.3, 0.6, 0.95, 1])
@pytest.mark.parametrize("pivots", [(4, 4), (1, 0), (2, 9)])
def test_it_keeps_pivots_and_what_duplicates_them_least(seed, ratio, pivots):
    view = random_view(seed=seed)
    budget = shares(view, ratio)
    chosen = holds(Dart(*pivots), view, budget)
    for row, kept in enumerate(budget.tolist()):
        assert chosen[row].nonzero()[:, 0].tolist() == oracle(view, row, kept, *pivots)


@pytest.mark.parametrize("seed", range(4))
def test_ties_in_the_norms_go_to_the_earlier_token(seed):
    view = random_view(seed=seed, coarse=True)
    budget = view.present.sum(1).clamp(max=3)  # pivots alone
    chosen = Dart().select(view, budget)
    for row, kept in enumerate(budget.tolist()):
        visual = norms(view.keys()[0][row].double(), int(view.present[row].sum()))
        assert chosen[row].nonzero()[:, 0].tolist() == sorted(top(visual, kept))


def test_of_equal_tokens_the_earlier_stays():
    view = random_view(counts=(8,), texts=(1,))
    view.states[:] = view.states[:, :1]
    visual_keys, _ = view.keys()
    visual_keys[0, :, 5] = 10.0  # the pivot
    chosen = Dart(visual_pivots=1).select(view, torch.tensor([4]))
    assert chosen[0].nonzero()[:, 0].tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize("kept", [0, 2, 5, 12])
@pytest.mark.parametrize("words", [2, 7])
def test_it_states_its_operations(kept, words):
    assert same_flops(Dart(), random_view(counts=(12,), texts=(words,)), kept) > 0


def test_a_row_of_states_that_say_nothing_is_filled():
    view = random_view()
    view.states[0] = torch.nan
    assert Dart().select(view, shares(view, 0.6)).sum(1).tolist() == shares(view, 0.6).tolist()


def test_bfloat16_states_are_compared_in_float32():
    view = random_view(seed=3)
    rounded = random_view(seed=3)
    for name in ("states", "text_states"):
        setattr(view, name, getattr(view, name).bfloat16())
        setattr(rounded, name, getattr(view, name).float())
    assert torch.equal(Dart().select(view, shares(view, 0.6)), Dart().select(rounded, shares(view, 0.6)))


def test_names_and_needs():
    assert resolve("dart") == Dart(visual_pivots=4, text_pivots=4, scored_by="previous")
    assert Dart().needs == Needs(before=True)
    assert Dart(scored_by="own").needs == Needs()


@pytest.mark.parametrize(
    "wrong", [{"visual_pivots": 0}, {"text_pivots": -1}, {"text_pivots": 1.0}, {"visual_pivots": True}]
)
def test_pivots_are_counted(wrong):
    with pytest.raises(HalfVError, match=f"{next(iter(wrong))} is "):
        Dart(**wrong)
