"""The partial eigensolver equals a full decomposition on every kind of spectrum, or says that it cannot."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_probe.states import eigensolver
from halfv_probe.states.eigensolver import (
    KrylovSpace,
    all_eigenvalues,
    leading_eigenvalues,
    orthonormal,
)

K = 4  # the Krylov space of so few has blocks of 8 and is at most 192 wide
SIZES = (500, 512)  # the second is factorised with a border
SPECTRA = {
    "power law": lambda i: 1 / i,
    "slow": lambda i: i**-0.5,
    "steep": lambda i: 10.0 ** -(i / 2),
    "spike": lambda i: np.where(i == 1, 1e8, 1 / i),
    "spikes": lambda i: np.where(i < 4, 10.0 ** (9 - i), 1 / i),
    "ill-conditioned head": lambda i: np.where(i <= K, 10.0 ** (-8 * (i - 1) / (K - 1)), 1e-9 / i),
    "few directions": lambda i: np.where(i <= 3, 1 / i, 0.0),
    "clusters": lambda i: np.floor(1 + 40 / i) / 40,
    "equal over the cut": lambda i: np.where(i <= 2 * K, 1.0, 0.1 / i),
    "flat": lambda i: 1 + 0 * i,
    "nearly flat": lambda i: 1 - 1e-4 * i,
    "zero": lambda i: 0 * i,
}


def gram(values, seed=0):
    """A matrix with these eigenvalues."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))
    matrix = (turn * values) @ turn.T
    return torch.from_numpy((matrix + matrix.T) / 2)


def proven_eigenvalues(matrix, k, start=None):
    """None instead of values that are not proven."""
    values, proven = eigensolver.proven_eigenvalues(matrix, k, start)
    return values if proven else None


def assert_equal(found, matrix, count=K):
    expected = np.clip(np.linalg.eigvalsh(matrix.numpy())[::-1][:count], 0, None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-13 * expected[0])


@pytest.mark.parametrize("shape", SPECTRA)
@settings(max_examples=8)
@given(size=st.integers(24, 400), seed=st.integers(0, 99))
def test_what_is_proven_equals_the_full_decomposition(shape, size, seed):
    matrix = gram(SPECTRA[shape](np.arange(1.0, size + 1)), seed)
    found = proven_eigenvalues(matrix, K)
    if found is not None:
        assert_equal(found, matrix)
    assert_equal(leading_eigenvalues(matrix, K), matrix)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", sorted(set(SPECTRA) - {"flat", "nearly flat"}))
def test_all_but_flat_spectra_are_proven(shape, size):
    assert proven_eigenvalues(gram(SPECTRA[shape](np.arange(1.0, size + 1))), K) is not None


@pytest.mark.parametrize("shape", ["flat", "nearly flat"])
def test_a_flat_spectrum_is_left_to_the_full_decomposition(shape, monkeypatch):
    matrix = gram(SPECTRA[shape](np.arange(1.0, 501)))
    assert proven_eigenvalues(matrix, K) is None
    whole = []
    monkeypatch.setattr(eigensolver, "all_eigenvalues", lambda gram: whole.append(gram) or all_eigenvalues(gram))
    assert_equal(leading_eigenvalues(matrix, K), matrix)
    assert len(whole) == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("missed", [1, K, K + 1, 100])
def test_an_eigenvector_that_the_basis_cannot_see_is_not_missed(missed, size, monkeypatch):
    """The basis converges without one coordinate; only the factorisation can tell that it is incomplete."""
    matrix = torch.diag(1 / torch.arange(1.0, size + 1, dtype=torch.float64))
    best = KrylovSpace.best

    def blind(space, count):
        basis = best(space, count)
        basis[..., missed - 1] = 0
        return orthonormal(basis)

    monkeypatch.setattr(KrylovSpace, "best", blind)
    found = proven_eigenvalues(matrix, K)
    if missed <= K:
        assert found is None
    if found is not None:
        assert_equal(found, matrix)
    assert_equal(leading_eigenvalues(matrix, K), matrix)


def test_a_start_without_the_largest_eigenvector_does_no_harm():
    matrix = torch.diag(1 / torch.arange(1.0, 501, dtype=torch.float64))
    start = torch.randn(8, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    start[:, 0] = 0
    found = proven_eigenvalues(matrix, K, start)
    if found is not None:
        assert_equal(found, matrix)


@given(tokens=st.integers(1, 500), width=st.integers(1, 500), k=st.integers(1, 8), seed=st.integers(0, 99))
def test_states_of_any_shape(tokens, width, k, seed):
    draw = np.random.default_rng(seed)
    states = torch.from_numpy(draw.normal(size=(tokens, width)) * draw.lognormal(0, 2, width))
    matrix = states.T @ states if tokens >= width else states @ states.T
    assert_equal(leading_eigenvalues(matrix, k), matrix, k)


def test_sixty_four_of_a_thousand():
    """The size that calibration meets: a mean token, a power law, and rounding."""
    matrix = gram(np.concatenate([[300.0], np.arange(1.0, 1024) ** -1.0]))
    found = proven_eigenvalues(matrix, 64)
    assert found is not None
    assert_equal(found, matrix, 64)
    torch.testing.assert_close(leading_eigenvalues(matrix, 64), found, rtol=0, atol=0)  # the same every time


def test_batches():
    matrices = torch.stack([gram(SPECTRA["power law"](np.arange(1.0, 501)), seed) for seed in range(4)])
    found = leading_eigenvalues(matrices.unflatten(0, (2, 2)), K)
    assert found.shape == (2, 2, K)
    for one, matrix in zip(found.flatten(0, 1), matrices, strict=True):
        assert_equal(one, matrix)


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_is_proven_matrix_by_matrix(size):
    """As a GPU decomposes it: what one needs more, or cannot have, takes nothing from the others."""
    matrices = torch.stack([gram(SPECTRA[shape](np.arange(1.0, size + 1))) for shape in SPECTRA])
    found, proven = eigensolver.proven_eigenvalues(matrices, K)
    assert proven.tolist() == [proven_eigenvalues(matrix, K) is not None for matrix in matrices]
    assert proven.any() and not proven.all()
    for one, matrix in zip(found[proven], matrices[proven], strict=True):
        assert_equal(one, matrix)
    for one, matrix in zip(eigensolver.in_one_go(matrices, K), matrices, strict=True):
        assert_equal(one, matrix)


def test_every_eigenvalue_of_a_batch():
    matrices = torch.stack([gram(SPECTRA["power law"](np.arange(1.0, 31)), seed) for seed in range(3)])
    expected = np.linalg.eigvalsh(matrices.numpy())[:, ::-1]
    np.testing.assert_allclose(all_eigenvalues(matrices).numpy(), expected, atol=1e-12)
