"""How sure a count makes us: an upper bound of a loss, how many samples a promise needs, and votes of resamples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

RESAMPLES = 500


def upper_bound(lost: int, samples: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson bound: the share lost is below it with this confidence.

    >>> round(upper_bound(0, 100), 3)
    0.03
    """
    return 1.0 if lost >= samples else float(beta.ppf(confidence, lost + 1, samples - lost))


def samples_needed(max_drop: float, confidence: float = 0.95) -> int:
    """Fewest samples on which a loss below `max_drop` can be shown at all, namely if none is lost.

    >>> samples_needed(0.02), samples_needed(0.01)
    (149, 299)

    Raises
    ------
    ValueError
        If either is not between 0 and 1: no number of samples shows that nothing at all is ever lost.
    """
    if not (0 < max_drop < 1 and 0 < confidence < 1):
        raise ValueError(f"max_drop {max_drop} and confidence {confidence} must lie between 0 and 1")
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_drop))


def votes(
    samples: int, choose: Callable[[NDArray[np.intp]], tuple[Hashable, ...]], seed: int, resamples: int = RESAMPLES
) -> list[dict[str, float]]:
    """Bootstrap: choose again on samples drawn with replacement, and count what wins.

    Parameters
    ----------
    samples : int
    choose : callable
        From the numbers of the drawn samples to a tuple of choices.
    seed : int

    Returns
    -------
    list of dict
        For each place of the tuple: choice, as a string -> share of resamples, most frequent first.
    """
    draw = np.random.default_rng(seed)
    chosen = [choose(draw.integers(0, samples, samples)) for _ in range(resamples)]
    return [
        {str(value): count / resamples for value, count in Counter(place).most_common()}
        for place in zip(*chosen, strict=True)
    ]
