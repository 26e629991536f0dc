"""Truncated matrix entropy (HalfV, Eq. 2): how many directions a set of hidden states really uses.

The k largest eigenvalues of the Gram matrix are renormalised to a distribution p; its Shannon entropy H(p) is the
measure, exp(H) an effective rank between 1 and k (Eq. 19), and 1 / sum p^2, the participation ratio (Eq. 20), a
stricter one. Truncation drops the tail, which carries noise rather than structure; how harmless that is, the tail mass
delta says (Eq. 22): Eq. 26 bounds the truncated entropy by the full one, and the full one by the truncated.

>>> truncated_entropy([1.0, 1.0, 1.0, 1.0], k=4)      # four equal directions: log(4)
1.3862943611198906
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """Two numbers between which an entropy lies, in nats."""

    low: float
    high: float


def truncated_entropy(eigenvalues: ArrayLike | Tensor, k: int) -> float:
    """Shannon entropy of the k largest eigenvalues, renormalised.

    Parameters
    ----------
    eigenvalues : (r,) array-like or tensor
        Non-negative, descending. Units cancel.
    k : int
        Eigenvalues kept; all of them when k > r.

    Returns
    -------
    float
        Entropy in nats, between 0 and log(k).

    Raises
    ------
    ValueError
        If k < 1, an eigenvalue is negative, or none is positive: constant zero states carry no spectrum.
    """
    p = _head(eigenvalues, k)
    return -torch.special.xlogy(p, p).sum().item() + 0.0  # + 0.0 turns -0.0 into 0.0


def effective_rank(eigenvalues: ArrayLike | Tensor, k: int) -> float:
    """exp of the truncated entropy (Eq. 9, 19): between 1 and k directions. Parameters and errors as there.

    >>> round(effective_rank([3.0, 3.0, 3.0, 0.0], k=4), 12)
    3.0
    """
    return math.exp(truncated_entropy(eigenvalues, k))


def participation_ratio(eigenvalues: ArrayLike | Tensor, k: int) -> float:
    """1 / sum p^2 of the k largest eigenvalues (Eq. 10, 20), at most the effective rank (Lemma 4).

    >>> participation_ratio([1.0, 1.0], k=2)
    2.0
    """
    return 1 / _head(eigenvalues, k).square().sum().item()


def tail_mass(eigenvalues: ArrayLike | Tensor, k: int, total: float | None = None) -> float:
    """Share of the energy behind eigenvalue k: delta of Eq. 11 and 22, between 0 and 1.

    Parameters
    ----------
    eigenvalues : (r,) array-like or tensor
        Non-negative, descending.
    k : int
    total : float, optional
        Trace of the Gram matrix, where only its largest eigenvalues are given; by default their sum.

    Raises
    ------
    ValueError
        As `truncated_entropy`.
    """
    values = _checked(eigenvalues, k)
    whole = values.sum().item() if total is None else total
    return min(1.0, max(0.0, 1 - values[:k].sum().item() / whole))


def binary_entropy(delta: float) -> float:
    """h2 of Proposition 2, in nats."""
    return -sum(x * math.log(x) for x in (delta, 1 - delta) if x > 0) + 0.0


def truncated_entropy_bounds(full_entropy: float, delta: float, k: int, rank: int) -> Bounds:
    """Where the truncated entropy lies, given the full one (Eq. 26).

    Parameters
    ----------
    full_entropy : float
        Of all `rank` eigenvalues, nats.
    delta : float
        Tail mass, below 1.
    k, rank : int
        Eigenvalues kept, and non-zero ones.

    Raises
    ------
    ValueError
        If delta is not in [0, 1).
    """
    _check_delta(delta)
    least = full_entropy - binary_entropy(delta)
    return Bounds((least - delta * _log_tail(k, rank)) / (1 - delta), least / (1 - delta))


def full_entropy_bounds(entropy: float, delta: float, k: int, rank: int) -> Bounds:
    """Where the full entropy lies, given the truncated one: Eq. 26, solved for H of all eigenvalues.

    This needs the head of a spectrum and its trace only. Parameters and errors as `truncated_entropy_bounds`.
    """
    _check_delta(delta)
    least = (1 - delta) * entropy + binary_entropy(delta)
    return Bounds(least, least + delta * _log_tail(k, rank))


def _check_delta(delta: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"the tail mass is {delta!r}: it must be at least 0 and below 1")


def _log_tail(k: int, rank: int) -> float:
    """Largest entropy that a tail of rank - k eigenvalues can have."""
    return math.log(rank - k) if rank > k + 1 else 0.0


def _checked(eigenvalues: ArrayLike | Tensor, k: int) -> Tensor:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    if (values < 0).any():
        raise ValueError(f"eigenvalues must not be negative, got {values.min().item():.3g}")
    if not values[:k].sum() > 0:
        raise ValueError("no eigenvalue is positive: the states are all zero and carry no spectrum")
    return values


def _head(eigenvalues: ArrayLike | Tensor, k: int) -> Tensor:
    """The k largest eigenvalues as a distribution."""
    head = _checked(eigenvalues, k)[:k]
    return head / head.sum()
