"""What each further token adds to those chosen before it (InfoPrune, Section 2.1, Eq. 2-3, Appendix C.1).

Marginal feature increment (MFI, Eq. 2): the part of a token that the tokens before it cannot span,

    MFI(x | S) = || x - U U^T x ||_2,     U an orthonormal basis of span(S).

Eq. 2 takes the norm, Appendix C.1.1 its square; here it is the norm unless asked otherwise.

Marginal information gain (MGI, Eq. 3): what a token adds to the volume of the covariance,

    MGI(x | S) = log det(C_{S+x} + eps I) - log det(C_S + eps I),     C_S = 1/|S| sum_{j in S} x_j x_j^T.

The boxed formula of Appendix C.1.2, log(1 + x^T (C_S + eps I)^-1 x / (t + 1)) with t = |S|, is not equal to Eq. 3. By
its own update C_{S+x} = t/(t+1) C_S + x x^T / (t+1) the old covariance shrinks, and with M = t/(t+1) C_S + eps I the
determinant lemma gives

    MGI(x | S) = log(1 + x^T M^-1 x / (t + 1)) + log det M - log det(C_S + eps I).

The box leaves out the last two terms, which are never positive together, and inverts another matrix. So it never falls
below zero, while Eq. 3 does when a token repeats what is there. This module computes Eq. 3.

A good order of selection lets both fall fast; one that picks similar tokens first keeps them up for long.

>>> marginal_feature_increments([[3.0, 0.0], [3.0, 0.0], [4.0, 5.0]], order=[0, 1, 2]).tolist()
[3.0, 0.0, 5.0]
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from halfv_accel.errors import HalfVError

RESOLUTION = 1e-10  # of a token's own norm; what is left of it below that is rounding, and no new direction
SMALLEST_EPS = 1e-10  # of the largest squared norm; below it float64 does not tell eps I from rounding


def marginal_feature_increments(states: ArrayLike | Tensor, order: ArrayLike | Tensor, squared: bool = False) -> Tensor:
    """Length of each token's part outside the span of the tokens before it.

    Parameters
    ----------
    states : (N, D) array-like or tensor
        One row a token, any real dtype, any device.
    order : (T,) array-like or tensor of int
        Rows in the order in which they are chosen; a row may come twice.
    squared : bool
        Square it, as Appendix C.1.1 does.

    Returns
    -------
    Tensor
        float64 [T], in units of the states (squared: of their squares), on the states' device. Exactly 0 for a token
        that lies in the span, up to rounding; not negative.

    Raises
    ------
    HalfVError
        If ``states`` is not a finite matrix, or ``order`` names a row that it does not have.
    """
    tokens = _in_order(states, order)
    # The same tokens in coordinates of their own span: all lengths and angles stay, columns become at most T.
    tokens = torch.linalg.qr(tokens.T, mode="r").R.T
    basis = tokens.new_zeros(tokens.shape[1], tokens.shape[1])
    increments = tokens.new_zeros(len(tokens))
    rank = 0
    for step, token in enumerate(tokens):
        span, residual = basis[:rank], token
        for _ in range(2):  # the second time takes away what rounding left of the first
            residual = residual - span.T @ (span @ residual)
        length = residual.norm()
        if rank < len(basis) and length > RESOLUTION * token.norm():
            basis[rank] = residual / length
            increments[step] = length
            rank += 1
    return increments.square() if squared else increments


def marginal_information_gains(
    states: ArrayLike | Tensor, order: ArrayLike | Tensor, eps: float, every: int = 1
) -> Tensor:
    """Growth of the regularised log volume of the covariance with each token, by Eq. 3 itself.

    With G the Gram matrix of the t chosen tokens, log det(C + eps I) = D log(eps) + log det(I + G / (t eps)), so that
    nothing larger than min(t, D) is decomposed. As eps I is not divided by t, no step is a rank-one change of the one
    before, and each takes its own Cholesky decomposition: T^4 / 12 operations for T < D tokens, for 576 of them less
    than a second of one CPU core.

    Parameters
    ----------
    states, order
        As in `marginal_feature_increments`.
    eps : float
        Regularisation in squared units of the states, at least 1e-10 of the largest squared norm.
    every : int
        Distance between measured steps, the first included; the paper records every 8th for LLaVA.

    Returns
    -------
    Tensor
        float64 [ceil(T / every)], nats, on the states' device. The first one is the gain over no token, whose
        covariance is zero. May be negative.

    Raises
    ------
    HalfVError
        As `marginal_feature_increments`, or if ``eps`` is too small or ``every`` is below 1.
    """
    tokens = _in_order(states, order)
    if every < 1:
        raise HalfVError(f"every must be at least 1, got {every}")
    least = SMALLEST_EPS * tokens.square().sum(dim=1).max().item()
    if not eps > 0 or eps < least:
        raise HalfVError(f"eps={eps:g} is too small for states of this size: give at least {max(least, 1e-300):.3g}")
    gram = tokens @ tokens.T
    steps = range(0, len(tokens), every)
    volumes = {t: _log_volume(tokens, gram, t, eps) for t in sorted({*steps, *(step + 1 for step in steps)})}
    return torch.stack([volumes[step + 1] - volumes[step] for step in steps])


def _log_volume(tokens: Tensor, gram: Tensor, t: int, eps: float) -> Tensor:
    """log det(I + C / eps) of the first t tokens, 0 for none."""
    if t == 0:
        return tokens.new_zeros(())
    scatter = gram[:t, :t] if t <= tokens.shape[1] else tokens[:t].T @ tokens[:t]
    identity = torch.eye(len(scatter), dtype=tokens.dtype, device=tokens.device)
    return 2 * torch.linalg.cholesky(identity + scatter / (t * eps)).diagonal().log().sum()


def _in_order(states: ArrayLike | Tensor, order: ArrayLike | Tensor) -> Tensor:
    """The chosen tokens, float64 [T, D]."""
    matrix = torch.as_tensor(states).to(torch.float64)
    if matrix.ndim != 2 or 0 in matrix.shape or not torch.isfinite(matrix).all():
        raise HalfVError(
            f"hidden states must be a finite, non-empty matrix [tokens, width], got shape {tuple(matrix.shape)}"
        )
    rows = torch.as_tensor(order, device=matrix.device)
    if rows.ndim != 1 or len(rows) == 0 or rows.is_floating_point():
        raise HalfVError(f"order must list rows of the states as whole numbers, got shape {tuple(rows.shape)}")
    if rows.min() < 0 or rows.max() >= len(matrix):
        raise HalfVError(f"order names rows {rows.min().item()} to {rows.max().item()}, but there are {len(matrix)}")
    return matrix[rows.long()]
