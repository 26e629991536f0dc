import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from halfv_probe.states.elbow import find_elbow
from halfv_probe.states.entropy import truncated_entropy
from halfv_probe.states.spectra import PANEL, eigenvalues, gram_matrix, group_grams, spectrum

matrices = arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    elements=st.floats(-10, 10, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-3 else v),
)
spectra = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=40).map(lambda values: sorted(values, reverse=True))


@given(states=matrices, center=st.booleans())
def test_spectrum_is_the_squared_singular_values(states, center):
    centred = states - states.mean(axis=0) if center else states
    expected = np.linalg.svd(centred, compute_uv=False) ** 2
    scale = max(1.0, expected.max())
    np.testing.assert_allclose(spectrum(states, center=center).numpy(), expected, atol=1e-10 * scale)


@given(states=matrices, seed=st.integers(0, 9))
def test_spectrum_ignores_rotation(states, seed):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(states.shape[1],) * 2))
    before, after = spectrum(states), spectrum(states @ rotation)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * max(1.0, before[0].item()))


@given(states=matrices, k=st.integers(1, 20))
def test_truncated_spectrum_is_the_head_of_the_whole(states, k):
    torch.testing.assert_close(spectrum(states, k=k), spectrum(states)[:k], rtol=0, atol=0)


@given(batch=st.integers(1, 3), tokens=st.integers(1, 9), width=st.integers(1, 9), k=st.integers(1, 10))
def test_a_batch_is_its_matrices_one_by_one(batch, tokens, width, k):
    states = np.random.default_rng(tokens).normal(size=(2, batch, tokens, width))
    expected = torch.stack([torch.stack([spectrum(one, k=k) for one in row]) for row in states])
    torch.testing.assert_close(spectrum(states, k=k), expected)
    torch.testing.assert_close(spectrum(states), torch.stack([torch.stack([*map(spectrum, row)]) for row in states]))


@given(states=matrices, rows=st.integers(1, 9))
def test_rows_of_zeros_add_only_zeros(states, rows):
    before = spectrum(states)
    after = spectrum(np.concatenate([states, np.zeros((rows, states.shape[1]))]))
    torch.testing.assert_close(after[: len(before)], before, rtol=1e-9, atol=1e-9 * max(1.0, before[0].item()))
    assert (after[len(before) :] <= 1e-9 * max(1.0, before[0].item())).all()


@given(
    visual=st.integers(1, 12),
    text=st.integers(1, 12),
    width=st.integers(1, 12),
    center=st.booleans(),
    k=st.integers(1, 9),
)
def test_grams_of_groups_have_the_spectra_of_their_tokens(visual, text, width, center, k):
    states = torch.from_numpy(np.random.default_rng(visual + 13 * text).normal(1.0, 1.0, (visual + text, width)))
    groups = states[:visual], states[visual:], states
    for gram, tokens in zip(group_grams(*groups[:2], center), groups, strict=True):
        expected = np.zeros(k)
        values = np.linalg.svd(tokens - center * tokens.mean(0), compute_uv=False)[:k] ** 2
        expected[: len(values)] = values
        found = eigenvalues(gram, k).numpy()
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-9)
        assert np.all(expected[len(found) :] <= 1e-9)


@pytest.mark.parametrize("width", [1, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL, 3 * PANEL + 7])
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("tall", [False, True])
def test_a_gram_matrix_in_panels_is_the_product_and_symmetric(width, batch, tall):
    states = torch.randn(
        *batch, width, 400 + width, dtype=torch.float64, generator=torch.Generator().manual_seed(width)
    )
    found = gram_matrix(states.mT if tall else states)
    torch.testing.assert_close(found, states @ states.mT, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-11)


@pytest.mark.parametrize("k", [None, 16])
def test_states_that_take_gradients_are_measured_too(k):
    states = torch.randn(400, 420, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = spectrum(states.clone().requires_grad_(), k=k)
    assert not found.requires_grad
    torch.testing.assert_close(found, spectrum(states, k=k), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3), np.array([[np.nan, 1.0]]), np.array([[np.inf]])])
def test_spectrum_refuses_what_has_none(bad):
    with pytest.raises(ValueError):
        spectrum(bad)


@given(values=spectra, k=st.integers(1, 50))
def test_entropy_lies_between_zero_and_log_k(values, k):
    assert 0 <= truncated_entropy(values, k) <= np.log(min(k, len(values))) + 1e-12


@given(values=spectra, k=st.integers(1, 50), scale=st.floats(1e-3, 1e3))
def test_entropy_ignores_scale(values, k, scale):
    assert truncated_entropy([v * scale for v in values], k) == pytest.approx(truncated_entropy(values, k), abs=1e-9)


@given(k=st.integers(1, 64))
def test_entropy_of_equal_directions_is_log_k(k):
    assert truncated_entropy([2.5] * 64, k) == pytest.approx(np.log(k))


@pytest.mark.parametrize(("values", "k"), [([0.0, 0.0], 2), ([1.0, -1.0], 2), ([1.0], 0)])
def test_entropy_refuses_what_is_no_spectrum(values, k):
    with pytest.raises(ValueError):
        truncated_entropy(values, k)


@given(signal=st.integers(1, 20), tail=st.integers(2, 60), floor=st.floats(1e-8, 1e-2), scale=st.floats(1e-3, 1e3))
def test_elbow_counts_the_directions_above_a_noise_floor(signal, tail, floor, scale):
    assert find_elbow([scale] * signal + [scale * floor] * tail) == signal


def test_elbow_of_a_decay_into_a_floor():
    assert find_elbow([2.0**-i for i in range(10)] + [1e-3] * 50) == 10


def test_elbow_without_a_bend_keeps_everything():
    assert find_elbow([1.0] * 7) == 7


def test_elbow_needs_a_positive_eigenvalue():
    with pytest.raises(ValueError, match="positive"):
        find_elbow([0.0, 0.0])
