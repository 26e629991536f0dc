"""Curvature of a token sequence (HalfV, Appendix A.3-A.4 and C.3-C.4): how sharply it bends in feature space.

Tokens in raster order are a polyline h_1, ..., h_N. Its curvature energy is the mean squared second difference
(Eq. 13, 27), which depends on the Gram matrix alone; Theorem 2 bounds what of it lies in the principal subspace by the
spectrum. The turning 1 - cos(theta) of its corners is bounded by the same second differences (Eq. 32-33). Appendix A.4
writes 1 - cos(theta) = |d_i - d_(i-1)|^2 / (2 |d_i| |d_(i-1)|); that holds for steps of equal length, and otherwise the
right side is an upper bound, as Eq. 32 has it.

>>> curvature_energy([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
2.0
>>> mean_turning([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])    # one right angle
1.0
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from numpy.typing import ArrayLike
from torch import Tensor

PIECE = 2**18


def curvature_energy(states: ArrayLike | Tensor) -> float:
    """Mean squared second difference along the sequence, in squared units of the states.

    Parameters
    ----------
    states : (N, D) array-like or tensor
        Tokens in their order, N >= 3.

    Raises
    ------
    ValueError
        If there are fewer than three tokens.
    """
    line = _polyline(states)
    energy = torch.stack([piece.diff(n=2, dim=0).square().sum() for piece in _pieces(line)]).sum()
    return energy.item() / (len(line) - 2)


def turnings(states: ArrayLike | Tensor) -> Tensor:
    """1 - cos of the angle at each inner token: float64 [N - 2], between 0 and 2; 0 beside a step of length zero.

    Parameters and errors as `curvature_energy`.
    """
    return torch.cat([_turnings(piece) for piece in _pieces(_polyline(states))])


def mean_turning(states: ArrayLike | Tensor) -> float:
    """Mean of `turnings`."""
    return turnings(states).mean().item()


def _turnings(line: Tensor) -> Tensor:
    steps = line.diff(dim=0)
    lengths = torch.linalg.vector_norm(steps, dim=1)
    lengths = lengths[1:] * lengths[:-1]
    turned = 1 - torch.linalg.vecdot(steps[1:], steps[:-1]) / lengths
    return turned.clamp(0, 2).where(lengths > 0, torch.zeros_like(turned))


def _polyline(states: ArrayLike | Tensor) -> Tensor:
    matrix = torch.as_tensor(states).to(torch.float64)
    if matrix.ndim != 2 or matrix.shape[0] < 3:
        raise ValueError(f"curvature needs at least three tokens [tokens, width], got shape {tuple(matrix.shape)}")
    return matrix


def _pieces(line: Tensor) -> Iterator[Tensor]:
    """The line in pieces that share two tokens with the next, so that their differences stay in a core's cache."""
    rows = max(1, PIECE // line.shape[1])
    for start in range(0, len(line) - 2, rows):
        yield line[start : start + rows + 2]
