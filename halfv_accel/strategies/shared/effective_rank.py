"""How many directions the visual tokens of a picture use: AdaVTP's measure of its complexity."""

from __future__ import annotations

import torch
from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.shared.greedy import finite


def effective_rank(states: Tensor, present: Tensor) -> Tensor:
    """exp of the entropy of the singular values, normalised to sum 1 (AdaVTP, Eq. 3 and 7; Roy and Vetterli, 2007).

    The singular values are the roots of the eigenvalues of a Gram matrix of the states, on its smaller side. In float32
    the roots of what should be zero would count, so it is taken in float64. The states are not centred.

    Parameters
    ----------
    states : (B, V, H) Tensor
    present : (B, V) bool Tensor

    Returns
    -------
    (B,) float64 Tensor
        Between 1 and min(tokens, H).
    """
    vectors = finite(states).double().masked_fill(~present[..., None], 0.0)
    tall = vectors.shape[1] > vectors.shape[2]
    with torch.autocast(states.device.type, enabled=False):
        gram = vectors.mT @ vectors if tall else vectors @ vectors.mT
        singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()  # on CUDA the host waits for this
    shares = singular / singular.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(shares).sum(1).exp()


def effective_rank_flops(tokens: int, hidden: int) -> int:
    """Products of `effective_rank` in one row, beside those inside the eigensolver."""
    return 2 * tokens * hidden * min(tokens, hidden)


def check_rank_average(average: object) -> None:
    """Refuse what cannot be a mean effective rank.

    Raises
    ------
    HalfVError
    """
    number = isinstance(average, (int, float)) and not isinstance(average, bool)
    if not number or not 1 <= average < float("inf"):  # type: ignore[operator]
        raise HalfVError(f"erank_avg is {average!r}: give the mean effective rank of this model's pictures, at least 1")
