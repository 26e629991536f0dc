"""FitPrune's calibration against its rule, token by token."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import HalfVError
from halfv_probe.choice.attention_budget import _tokens, attention_budget


def dropped(received, alive, alpha):
    """Tokens that go, the least attended first, while the rest holds all but alpha: exact arithmetic."""
    received = [Fraction(float(x)) for x in received]
    limit = (1 - alpha) * sum(received)
    held, gone = sum(received[i] for i in alive), set()
    for token in sorted(alive, key=lambda i: (received[i], -i)):
        if held - received[token] < limit:
            break
        held -= received[token]
        gone.add(token)
    return gone


def oracle(from_text, from_picture, visual, alpha):
    shares = []
    for text, picture in zip(from_text, from_picture, strict=True):
        alive, kept = list(range(text.shape[1])), []
        for layer in range(len(text)):
            kept.append(Fraction(len(alive), text.shape[1]))
            gone = dropped(text[layer], alive, alpha) & dropped(picture[layer], alive, alpha)
            alive = [i for i in alive if i not in gone]
        shares.append(kept)
    return [math.ceil(visual * sum(layer) / len(shares)) for layer in zip(*shares, strict=True)]


def statistics(seed, counts=(9, 9, 12), layers=5):
    draw = np.random.default_rng(seed)
    return [[draw.gamma(0.4, size=(layers, count)) for count in counts] for _ in range(2)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("alpha", [Fraction(k, 16) for k in (0, 1, 3, 8, 13, 15, 16)])
def test_a_token_goes_when_text_and_picture_can_do_without(seed, alpha):
    text, picture = statistics(seed)
    pairs = list(zip(text, picture, strict=True))
    assert _tokens(pairs, 20, float(alpha)) == oracle(text, picture, 20, alpha)


def test_of_equally_attended_tokens_the_earlier_stay():
    text = picture = [np.ones((2, 4))]
    assert _tokens(list(zip(text, picture, strict=True)), 4, 0.5) == [4, 2]
    second = np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 1.0, 1.0]])
    assert _tokens([(second, second)], 4, 0.5) == [4, 2, 2]  # the two that stayed are not those that layer 1 looks at


@given(st.integers(0, 50), st.floats(0.05, 1))
def test_the_target_is_met_and_nearly_spent(seed, share):
    text, picture = statistics(seed)
    visual, layers = 600, 5
    target = layers * visual * share + visual  # the first layer processes all
    found = attention_budget(text, picture, visual, sum, target).tokens
    assert sum(found) <= target
    assert found[0] == visual
    assert found == sorted(found, reverse=True)
    alphas = np.linspace(0, 1, 30)
    costs = [sum(_tokens(list(zip(text, picture, strict=True)), visual, alpha)) for alpha in alphas]
    if costs == sorted(costs, reverse=True):  # then there is one best alpha
        assert sum(found) >= max(cost for cost in costs if cost <= target)


def test_a_target_that_asks_for_nothing_drops_only_what_nobody_looks_at():
    text, picture = statistics(0)
    assert attention_budget(text, picture, 12, sum, 60).tokens == [12] * 5
    for each in (*text, *picture):
        each[:, 0] = 0
    assert attention_budget(text, picture, 12, sum, 60).tokens == [12] + [11] * 4  # mean of 8/9, 8/9 and 11/12


def test_what_cannot_be_reached_is_told():
    text, picture = statistics(0)
    with pytest.raises(HalfVError, match="the least that dropping tokens can cost is 12"):
        attention_budget(text, picture, 12, sum, 11)


@pytest.mark.parametrize(
    ("text", "picture", "says"),
    [
        ([], [], "do not fit together"),
        ([np.ones((2, 3))], [], "do not fit together"),
        ([np.ones((2, 3))], [np.ones((2, 4))], "do not fit together"),
        ([np.ones(3)], [np.ones(3)], "do not fit together"),
        ([np.ones((2, 0))], [np.ones((2, 0))], "do not fit together"),
        ([np.ones((2, 3)), np.ones((3, 3))], [np.ones((2, 3)), np.ones((3, 3))], "different numbers of layers"),
        ([-np.ones((2, 3))], [np.ones((2, 3))], "negative or not finite"),
        ([np.full((2, 3), np.nan)], [np.ones((2, 3))], "negative or not finite"),
    ],
)
def test_statistics_are_checked(text, picture, says):
    with pytest.raises(HalfVError, match=says):
        attention_budget(text, picture, 3, sum, 1)
