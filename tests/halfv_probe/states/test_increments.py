"""Marginal increments against least squares and against Eq. 3 taken literally, repeated tokens included."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import HalfVError
from halfv_probe.states.increments import marginal_feature_increments, marginal_information_gains


@st.composite
def selections(draw):
    """States [N, D] of very different sizes, some of them copies, multiples or sums of others, and an order."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, width = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    states = random.standard_normal((count, width)) * 10.0 ** random.integers(-2, 3, (count, 1))
    for row in range(1, count):
        kind = draw(st.sampled_from(["new", "new", "copy", "multiple", "sum", "zero"]))
        first, second = random.integers(0, row, 2)
        if kind != "new":
            states[row] = {
                "copy": states[first],
                "multiple": -3.7 * states[first],
                "sum": states[first] + 0.5 * states[second],
                "zero": 0 * states[first],
            }[kind]
    return states, random.permutation(count)[: draw(st.integers(1, count))]


def slow_increment(tokens, t):
    """Distance of token t from the span of the tokens before it, by least squares on tokens of length 1."""
    before = [token / np.linalg.norm(token) for token in tokens[:t] if token.any()]
    if not before:
        return np.linalg.norm(tokens[t])
    span = np.array(before).T
    return np.linalg.norm(tokens[t] - span @ np.linalg.lstsq(span, tokens[t], rcond=1e-9)[0])


def slow_volume(tokens, eps):
    """log det(C + eps I) of Eq. 3; no tokens have no covariance."""
    width = tokens.shape[1]
    covariance = sum((np.outer(x, x) for x in tokens), np.zeros((width, width))) / max(len(tokens), 1)
    return np.linalg.slogdet(covariance + eps * np.eye(width))[1]


@given(selections())
def test_feature_increment_is_the_least_squares_residual(selection):
    states, order = selection
    tokens = states[order]
    found = marginal_feature_increments(states, order).tolist()
    for t, token in enumerate(tokens):
        assert found[t] == pytest.approx(slow_increment(tokens, t), abs=1e-7 * np.linalg.norm(token))


@given(selections(), st.integers(0, 9))
def test_feature_increments_ignore_rotation_and_scale_with_the_states(selection, seed):
    states, order = selection
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((states.shape[1],) * 2))[0]
    found = marginal_feature_increments(states, order)
    for changed, factor in ((states @ rotation, 1.0), (-2.0 * states, 2.0)):
        np.testing.assert_allclose(
            marginal_feature_increments(changed, order),
            factor * found,
            atol=1e-7 * max(1e-300, np.linalg.norm(states, axis=1).max()),
        )
    np.testing.assert_allclose(marginal_feature_increments(states, order, squared=True), found**2)


def test_no_more_than_the_width_are_new_and_copies_never_are():
    states = np.random.default_rng(0).standard_normal((40, 6))
    order = [0, 0, 1, 0, 2, 3, 3, 4, 5, *range(40)]
    found = marginal_feature_increments(states, order)
    assert [t for t, value in enumerate(found) if value > 0] == [0, 2, 4, 5, 7, 8]
    assert (found >= 0).all()


@given(selections(), st.floats(1e-3, 10.0), st.integers(1, 4))
def test_information_gain_is_eq_3_itself(selection, eps, every):
    states, order = selection
    tokens = states[order]
    found = marginal_information_gains(states, order, eps, every)
    expected = [slow_volume(tokens[: t + 1], eps) - slow_volume(tokens[:t], eps) for t in range(0, len(tokens), every)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(selections(), st.floats(0.1, 10.0))
def test_the_box_of_the_appendix_drops_what_the_old_covariance_loses(selection, eps):
    """C.1.2 rescales C_S by t / (t + 1) and forgets it in the determinant; put back, the lemma gives Eq. 3."""
    states, order = selection
    tokens = states[order]
    identity = np.eye(tokens.shape[1])
    for t, gain in enumerate(marginal_information_gains(states, order, eps).tolist()):
        x, covariance = tokens[t], tokens[:t].T @ tokens[:t] / max(t, 1)
        shrunk = t / (t + 1) * covariance + eps * identity
        lost = np.linalg.slogdet(shrunk)[1] - np.linalg.slogdet(covariance + eps * identity)[1]
        lemma = np.log1p(x @ np.linalg.solve(shrunk, x) / (t + 1)) + lost
        box = np.log1p(x @ np.linalg.solve(covariance + eps * identity, x) / (t + 1))
        assert gain == pytest.approx(lemma, rel=1e-6, abs=1e-6)
        assert lost <= 1e-9
        assert box >= 0


def test_a_repeated_token_can_cost_information_where_the_box_counts_a_gain():
    states = np.eye(3)[:2] * 10
    gain = marginal_information_gains(states, [0, 1, 0], eps=0.01)[2].item()
    covariance = states.T @ states / 2 + 0.01 * np.eye(3)
    box = np.log1p(states[0] @ np.linalg.solve(covariance, states[0]) / 3)
    assert gain == pytest.approx(np.log(2 / 3 * 1 / 3) - np.log(1 / 4), rel=1e-3)
    assert gain < -0.1 < 0.5 < box


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_of_any_dtype_are_measured_in_float64(dtype):
    states = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = states.double().numpy()
    order = torch.tensor([3, 1, 4])
    assert marginal_feature_increments(states, order).dtype == torch.float64
    np.testing.assert_array_equal(marginal_feature_increments(states, order), marginal_feature_increments(exact, order))
    np.testing.assert_array_equal(
        marginal_information_gains(states, order, eps=1.0), marginal_information_gains(exact, order, eps=1.0)
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1.0, 2.0], [0], 1.0), r"shape \(2,\)"),
        (([[1.0, float("nan")]], [0], 1.0), "finite"),
        (([[1.0]], [1], 1.0), "rows 1 to 1, but there are 1"),
        (([[1.0]], [-1], 1.0), "rows -1"),
        (([[1.0]], [], 1.0), "order"),
        (([[1.0]], [0.0], 1.0), "whole numbers"),
        (([[1.0]], [0], 0.0), "eps=0 is too small"),
        (([[1e6]], [0], 1e-3), "give at least 100"),
        (([[1.0]], [0], 1.0, 0), "every must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_refused(arguments, says):
    with pytest.raises(HalfVError, match=says):
        marginal_information_gains(*arguments)
