"""The paper's lemmas, proposition and theorem as laws on random and adversarial spectra (Appendix C)."""

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from halfv_probe.states import geometry
from halfv_probe.states.entropy import (
    binary_entropy,
    effective_rank,
    full_entropy_bounds,
    participation_ratio,
    tail_mass,
    truncated_entropy,
    truncated_entropy_bounds,
)
from halfv_probe.states.geometry import curvature_energy, mean_turning, turnings
from halfv_probe.states.spectra import spectrum

values = st.one_of(st.floats(1e-12, 1e12), st.sampled_from([1e-12, 1.0, 1.0 + 1e-12, 1e12]))
spectra = st.lists(values, min_size=1, max_size=40).map(lambda found: sorted(found, reverse=True))
polylines = st.integers(0, 10**6).map(lambda seed: np.random.default_rng(seed))


def shannon(p):
    return -sum(x * math.log(x) for x in p if x > 0)


@given(found=spectra, k=st.integers(1, 50))
def test_lemma_3_the_effective_rank_lies_between_one_and_k(found, k):
    assert 1 - 1e-12 <= effective_rank(found, k) <= min(k, len(found)) * (1 + 1e-9)


@given(k=st.integers(1, 40), scale=st.floats(1e-6, 1e6))
def test_lemma_3_is_tight_at_both_ends(k, scale):
    assert effective_rank([scale] + [0.0] * 40, k) == 1
    assert effective_rank([scale] * k, k) == pytest.approx(k)


@given(found=spectra, k=st.integers(1, 50))
def test_lemma_4_the_participation_ratio_is_at_most_the_effective_rank(found, k):
    assert 1 - 1e-12 <= participation_ratio(found, k) <= effective_rank(found, k) * (1 + 1e-9)


@given(found=spectra, k=st.integers(1, 40))
def test_entropy_and_participation_equal_their_definitions(found, k):
    head = found[:k]
    p = [value / math.fsum(head) for value in head]
    assert truncated_entropy(found, k) == pytest.approx(shannon(p), abs=1e-9)
    assert participation_ratio(found, k) == pytest.approx(math.fsum(head) ** 2 / math.fsum(v * v for v in head))


@given(found=spectra.filter(lambda s: len(s) > 1), data=st.data())
def test_proposition_2_head_and_tail_make_up_the_full_entropy(found, data):
    k = data.draw(st.integers(1, len(found) - 1))
    delta = tail_mass(found, k)
    assume(1e-12 < delta < 1 - 1e-12)
    head, tail = truncated_entropy(found, k), truncated_entropy(found[k:], len(found))
    full = truncated_entropy(found, len(found))
    assert full == pytest.approx((1 - delta) * head + binary_entropy(delta) + delta * tail, rel=1e-6, abs=1e-9)


@given(found=spectra, data=st.data())
def test_equation_26_bounds_hold_in_both_directions(found, data):
    k = data.draw(st.integers(1, len(found)))
    delta, rank = tail_mass(found, k), len(found)
    assume(delta < 1 - 1e-9)
    head, full = truncated_entropy(found, k), truncated_entropy(found, rank)
    slack = 1e-7 / (1 - delta)
    bounds = truncated_entropy_bounds(full, delta, k, rank)
    assert bounds.low - slack <= head <= bounds.high + slack
    bounds = full_entropy_bounds(head, delta, k, rank)
    assert bounds.low - slack <= full <= bounds.high + slack


def test_equation_26_is_tight_where_the_tail_is_flat_or_a_single_direction():
    flat = [4.0, 2.0, 1.0, 1.0, 1.0]
    head, full, delta = truncated_entropy(flat, 2), truncated_entropy(flat, 5), tail_mass(flat, 2)
    assert full_entropy_bounds(head, delta, 2, 5).high == pytest.approx(full)
    single = [4.0, 2.0, 1.0]
    head, full, delta = truncated_entropy(single, 2), truncated_entropy(single, 3), tail_mass(single, 2)
    assert full_entropy_bounds(head, delta, 2, 3).low == pytest.approx(full)


@given(found=spectra, k=st.integers(1, 40))
def test_the_trace_stands_in_for_a_tail_that_is_not_given(found, k):
    assert tail_mass(found[:k], k, total=math.fsum(found)) == pytest.approx(tail_mass(found, k), abs=1e-9)


@pytest.mark.parametrize("delta", [-0.1, 1.0, 1.5])
def test_a_tail_mass_outside_its_range_is_refused(delta):
    with pytest.raises(ValueError, match="tail mass"):
        full_entropy_bounds(1.0, delta, 2, 3)


def second_difference(n):
    operator = np.zeros((n - 2, n))
    for i in range(n - 2):
        operator[i, i : i + 3] = 1, -2, 1
    return operator


@given(draw=polylines, n=st.integers(3, 20), width=st.integers(1, 25), data=st.data())
def test_theorem_2_principal_curvature_is_bounded_by_spectral_concentration(draw, n, width, data):
    states = draw.normal(size=(n, width)) * draw.lognormal(0, 2, width)
    k = data.draw(st.integers(1, min(n, width)))
    weights, vectors = np.linalg.eigh(states @ states.T)
    head = vectors[:, -k:] * np.sqrt(weights[-k:].clip(0))
    operator = second_difference(n)
    principal = np.trace(operator.T @ operator @ head @ head.T) / (n - 2)
    found = spectrum(states)
    bound = (
        np.linalg.norm(operator.T @ operator)
        / (n - 2)
        * found[:k].sum().item()
        / math.sqrt(participation_ratio(found, k))
    )
    assert principal <= bound * (1 + 1e-9)
    if k == min(n, width):  # nothing truncated: Eq. 28, curvature is a function of the Gram matrix
        assert principal == pytest.approx(curvature_energy(states))


@given(draw=polylines, n=st.integers(3, 12), width=st.integers(1, 6), piece=st.integers(1, 80))
def test_curvature_and_turning_equal_slow_loops(draw, n, width, piece):
    h = draw.normal(size=(n, width))
    energy, corners = [], []
    for i in range(1, n - 1):
        energy.append(sum((h[i + 1] - 2 * h[i] + h[i - 1]) ** 2))
        a, b = h[i] - h[i - 1], h[i + 1] - h[i]
        corners.append(1 - (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    with patch.object(geometry, "PIECE", piece):  # whole, or in pieces of one token or more
        assert curvature_energy(h) == pytest.approx(np.mean(energy))
        assert mean_turning(torch.tensor(h)) == pytest.approx(np.mean(corners))
        assert turnings(h).tolist() == pytest.approx(corners)


@given(draw=polylines, n=st.integers(3, 12), width=st.integers(1, 6))
def test_equations_32_and_33_bound_the_turning(draw, n, width):
    h = draw.normal(size=(n, width)) * draw.lognormal(0, 1, (n, 1))
    steps = np.linalg.norm(np.diff(h, axis=0), axis=1)
    second = (np.diff(h, n=2, axis=0) ** 2).sum(axis=1)
    turned = turnings(h).numpy()
    assert (turned <= second / (2 * steps[1:] * steps[:-1]) + 1e-9).all()
    assert (turned <= second / (2 * steps.min() ** 2) + 1e-9).all()


def test_the_identity_of_appendix_a_4_needs_steps_of_equal_length():
    """Half the second difference of a straight line that speeds up is not 0, its turning is."""
    line = [[0.0], [1.0], [3.0]]
    assert mean_turning(line) == 0
    assert curvature_energy(line) == 1


@given(draw=polylines, seed=st.integers(0, 9))
def test_curvature_ignores_rotation(draw, seed):
    h = draw.normal(size=(9, 5))
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))
    assert curvature_energy(h @ rotation) == pytest.approx(curvature_energy(h))
    assert mean_turning(h @ rotation) == pytest.approx(mean_turning(h))


@given(draw=polylines, scale=st.floats(1e-3, 1e3), k=st.integers(1, 9))
def test_entropy_ignores_rotation_order_and_scale_of_the_states(draw, scale, k):
    h = draw.normal(size=(12, 7))
    rotation, _ = np.linalg.qr(draw.normal(size=(7, 7)))
    before = truncated_entropy(spectrum(h), k)
    for changed in (h @ rotation, h[draw.permutation(12)], scale * h):
        assert truncated_entropy(spectrum(changed), k) == pytest.approx(before, abs=1e-9)


def test_curvature_depends_on_the_order():
    line = np.arange(5.0)[:, None]
    assert curvature_energy(line) == 0
    assert curvature_energy(line[[0, 2, 1, 4, 3]]) > 1


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.zeros(5)])
def test_curvature_needs_three_tokens(bad):
    with pytest.raises(ValueError, match="three tokens"):
        curvature_energy(bad)


def test_tokens_that_stand_still_do_not_turn():
    assert turnings(np.ones((4, 2))).tolist() == [0.0, 0.0]
