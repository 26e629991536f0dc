"""Truncated matrix entropy (HalfV, Eq. 2): how many directions a set of hidden states really uses.

The k largest eigenvalues of the Gram matrix are renormalised to a distribution; its Shannon entropy is the measure.
exp(H) is an effective rank between 1 and k. Truncation drops the tail, which carries noise rather than structure.

>>> truncated_entropy([1.0, 1.0, 1.0, 1.0], k=4)      # four equal directions: log(4)
1.3862943611198906
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor


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
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    head = torch.as_tensor(eigenvalues, dtype=torch.float64)[:k]
    if (head < 0).any():
        raise ValueError(f"eigenvalues must not be negative, got {head.min().item():.3g}")
    if not head.sum() > 0:
        raise ValueError("no eigenvalue is positive: the states are all zero and carry no spectrum")
    p = head / head.sum()
    return -torch.special.xlogy(p, p).sum().item() + 0.0  # + 0.0 turns -0.0 into 0.0
