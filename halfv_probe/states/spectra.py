"""Spectrum of a set of hidden states (HalfV, Eq. 1): how its energy is spread over directions.

The states of N tokens are stacked to Z [N, D]. Z Z^T and Z^T Z share their non-zero eigenvalues, so the Gram matrix is
taken on the smaller side. It is formed and decomposed in float64: its eigenvalues are squares of singular values and
span twice their orders of magnitude, more than float32 resolves. Where only the largest are asked for, `eigensolver`
finds them faster than a full decomposition, and proves that they are the largest.

>>> spectrum([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]).tolist()
[9.0, 4.0]
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_probe.states.eigensolver import all_eigenvalues, leading_eigenvalues

PANEL = 128  # rows of a Gram matrix that are computed at once on the CPU


def spectrum(states: ArrayLike | Tensor, center: bool = False, k: int | None = None) -> Tensor:
    """Eigenvalues of the Gram matrix of a set of hidden states, descending.

    Parameters
    ----------
    states : (..., N, D) array-like or tensor
        One row a token, any real dtype, any device. Leading dimensions are a batch; a sample with fewer tokens may be
        filled up with rows of zeros, which add only eigenvalues that are zero (but not with ``center``).
    center : bool
        Subtract the mean token first. Eq. 1 does not; the paper's public code does.
    k : int, optional
        Only the k largest; all min(N, D) of them by default.

    Returns
    -------
    Tensor
        float64 [..., min(N, D)] or [..., k], non-negative, without gradients, in squared units of the states, on their
        device. With k, equal to those of a full decomposition as closely as `leading_eigenvalues` says.

    Raises
    ------
    HalfVError
        If ``states`` is not a matrix with at least one row (or a batch of them), or holds a value that is not finite.
    """
    matrix = checked(states)
    if center:
        matrix = matrix - matrix.mean(dim=-2, keepdim=True)
    return eigenvalues(gram_matrix(matrix), k)


def checked(states: ArrayLike | Tensor) -> Tensor:
    """States as float64 matrices [..., N, D], detached; errors as `spectrum`."""
    matrix = torch.as_tensor(states).detach().to(torch.float64)
    if matrix.ndim < 2 or 0 in matrix.shape:
        raise HalfVError(f"hidden states must be a non-empty matrix [tokens, width], got shape {tuple(matrix.shape)}")
    if not matrix.sum().isfinite():  # one that is not makes the sum so
        raise HalfVError("hidden states hold NaN or infinity: load the model in float32 or bfloat16 and try again")
    return matrix


def group_grams(visual: Tensor, text: Tensor, center: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrices of the visual tokens, the text tokens, and both: float64 [n, n], each on its smaller side.

    On the side of the features, that of all tokens is the visual one plus what the text adds, which is little work.

    Parameters
    ----------
    visual, text : (N, D) tensor
        float64.
    center : bool
        Subtract the mean token of each group. The scatter of all tokens around their mean is then that within the
        two groups and that between them.
    """
    others = text
    if center:
        share = len(visual) * len(text) / (len(visual) + len(text))
        between = (visual.mean(dim=0) - text.mean(dim=0)) * share**0.5
        visual, text = visual - visual.mean(dim=0), text - text.mean(dim=0)
        others = torch.cat([text, between[None]])
    seen = gram_matrix(visual)
    if len(visual) < visual.shape[1]:
        return seen, gram_matrix(text), gram_matrix(torch.cat([visual, others]))
    return seen, gram_matrix(text), torch.addmm(seen, others.T, others)


def gram_matrix(matrix: Tensor) -> Tensor:
    """Z^T Z or Z Z^T of float64 matrices [..., N, D], whichever is smaller: [..., min(N, D), min(N, D)]."""
    wide = matrix if matrix.shape[-2] < matrix.shape[-1] else matrix.mT
    if wide.is_cuda:
        return wide @ wide.mT
    wide = wide.contiguous()  # both factors are read along what is summed, and only one triangle is computed
    gram = wide.new_empty(*wide.shape[:-1], wide.shape[-2])
    for start in range(0, wide.shape[-2], PANEL):
        end = start + PANEL
        panel = wide[..., start:end, :] @ wide[..., start:, :].mT
        gram[..., start:end, start:] = panel
        gram[..., end:, start:end] = panel[..., PANEL:].mT
    return gram


def eigenvalues(gram: Tensor, k: int | None = None) -> Tensor:
    """Those of positive semidefinite matrices [..., n, n]: all or the k largest, descending, not negative."""
    return all_eigenvalues(gram) if k is None else leading_eigenvalues(gram, k)
