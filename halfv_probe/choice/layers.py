"""Which layers do without visual tokens, read from what each layer's absence changes.

Both searches take KL divergences between the next-token distributions of the untouched and of the changed model, mean
over samples; how they are measured is not their business.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfv_accel.errors import HalfVError

ETA = 0.003  # VTW's threshold for 7B models, in its public code; 0.0005 for 13B


def withdrawal_layer(kl: ArrayLike, eta: float = ETA, first: int = 5) -> int:
    """K of VTW (Lin et al., AAAI 2025, arXiv 2405.05803): the first layer from which on all visual tokens can go.

    Parameters
    ----------
    kl : (layers,) array-like
        KL at the last token, in nats, when no layer from this one on sees a visual token.
    eta : float
        The largest KL that counts as no difference.
    first : int
        Shallower layers are not looked at; VTW begins at 5.

    Raises
    ------
    HalfVError
        If no layer is good enough, or `kl` is not a list of numbers.

    >>> withdrawal_layer([3.0, 2.0, 0.9, 0.001, 0.2, 0.05, 0.002, 0.001])
    6
    """
    values = _checked(kl)
    if first < 0:
        raise HalfVError(f"first is {first}: give a layer, at least 0")
    good = np.flatnonzero(values[first:] <= eta)
    if good.size == 0:
        tried = values[first:]
        least = f"the smallest is {np.min(tried):.2g}" if tried.size else f"there are only {values.size} layers"
        raise HalfVError(
            f"from layer {first} on, no KL is at most {eta:g} ({least}): give a larger eta, or K itself, e.g. "
            f"{values.size // 2}"
        )
    return first + int(good[0])


def ineffective_layers(kl: ArrayLike, count: int) -> tuple[int, ...]:
    """ShortV's layers (Yuan et al., 2025, arXiv 2504.00502): those that change the output least through visual tokens.

    Parameters
    ----------
    kl : (layers,) array-like
        Layer contribution: KL when visual tokens skip this layer alone.
    count : int
        How many layers skip them; of equal ones, the shallower.

    Returns
    -------
    tuple of int
        In ascending order.

    Raises
    ------
    HalfVError

    >>> ineffective_layers([0.9, 0.1, 0.4, 0.05], count=2)
    (1, 3)
    """
    values = _checked(kl)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= values.size:
        raise HalfVError(f"count is {count!r}: give a whole number from 0 to {values.size}, the number of layers")
    return tuple(sorted(np.argsort(values, kind="stable")[:count].tolist()))


def _checked(kl: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(kl, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or np.isnan(values).any():
        raise HalfVError(f"kl has shape {values.shape}, or NaNs in it: give one number for each layer")
    return values
