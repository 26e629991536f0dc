"""Spectrum of a set of hidden states (HalfV, Eq. 1): how its energy is spread over directions.

The states of N tokens are stacked to Z [N, D]. Z Z^T and Z^T Z share their non-zero eigenvalues, so the Gram matrix is
taken on the smaller side. It is formed and decomposed in float64: its eigenvalues are squares of singular values and
span twice their orders of magnitude, more than float32 resolves.

>>> spectrum([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]).tolist()
[9.0, 4.0]
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from halfv_accel.errors import HalfVError


def spectrum(states: ArrayLike | Tensor, center: bool = False, k: int | None = None) -> Tensor:
    """Eigenvalues of the Gram matrix of a set of hidden states, descending.

    Parameters
    ----------
    states : (N, D) array-like or tensor
        One row a token, any real dtype, any device.
    center : bool
        Subtract the mean token first. Eq. 1 does not; the paper's public code does.
    k : int, optional
        Only the k largest; all min(N, D) of them by default.

    Returns
    -------
    Tensor
        float64 [min(N, D)] or [k], non-negative, in squared units of the states, on the states' device.

    Raises
    ------
    HalfVError
        If ``states`` is not a matrix with at least one row, or holds a value that is not finite.
    """
    matrix = torch.as_tensor(states).to(torch.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise HalfVError(f"hidden states must be a non-empty matrix [tokens, width], got shape {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise HalfVError("hidden states hold NaN or infinity: load the model in float32 or bfloat16 and try again")
    if center:
        matrix = matrix - matrix.mean(dim=0)
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    eigenvalues = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)  # rounding can leave tiny negatives
    return eigenvalues[:k]
