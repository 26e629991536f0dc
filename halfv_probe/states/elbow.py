"""Elbow of a spectrum: how many eigenvalues stand before the tail (HalfV, Section 3.1 and Appendix B.2).

The paper cuts each spectrum "before the elbow point" without a formula. Here the elbow is the point that lies deepest
below the chord from the first to the last eigenvalue, on a logarithmic scale, where a noise floor is flat and the few
strong directions stand out. On a linear scale the first eigenvalue, usually the mean token, would always win alone.

>>> find_elbow([10.0, 10.0, 10.0, 0.01, 0.01, 0.01, 0.01])
3
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

FLOOR = 1e-12  # of the largest eigenvalue; below it float64 eigenvalues are rounding


def find_elbow(eigenvalues: ArrayLike | Tensor) -> int:
    """Number of eigenvalues before the elbow.

    Parameters
    ----------
    eigenvalues : (r,) array-like or tensor
        Non-negative, descending. Scaling them changes nothing.

    Returns
    -------
    int
        Between 1 and r; r where the spectrum has no elbow (no point lies below the chord).

    Raises
    ------
    ValueError
        If the largest eigenvalue is not positive.
    """
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    if values.ndim != 1 or len(values) == 0 or not values[0] > 0:
        raise ValueError("an elbow needs a descending spectrum whose first eigenvalue is positive")
    curve = (values / values[0]).clamp(min=FLOOR).log()
    chord = torch.linspace(0.0, curve[-1].item(), len(curve), dtype=torch.float64)
    depth = (chord - curve.cpu()) / max(-curve[-1].item(), 1e-300)
    deepest = int(depth.argmax())
    return deepest if depth[deepest] > 1e-9 else len(values)
