"""Bootstrap intervals of paired differences that hold for all of them at once.

Samples are drawn anew with replacement, all entrants together, so that what makes a sample hard is hard for everybody.
In every draw the largest of the studentised deviations is taken (bootstrap-t: each by the error of its own draw), and
the quantile of these maxima widens all intervals, so that with the stated confidence not one of them misses its true
difference (the single-step max-T bootstrap: Westfall and Young 1993; Romano and Wolf, "Exact and Approximate Stepwise
Methods for Multiple Hypothesis Testing", JASA 2005). Differences of shares are skewed; each side reaches as far as the
symmetric and the one-sided quantile ask. On simulated null models the symmetric one alone was too narrow.

Where hardly a sample differs, no bootstrap can be trusted. A difference that could not be shown even if all samples
that differ spoke for one side (an exact sign test, corrected for as many tests as can be shown at all: Tarone, "A
Modified Bonferroni Method for Discrete Data", Biometrics 1990) takes no part, and its interval always holds 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95
AT_ONCE = 2**22  # drawn numbers held in memory
Seed = int | Sequence[int]


@dataclass(frozen=True)
class Differences:
    """Mean differences with simultaneous intervals: float64 [m] each.

    ``differ`` is int64 [m], the samples that differ at all. An interval on one side of 0 is a difference that is shown.
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    differ: NDArray[np.int64]


def differences(
    families: Sequence[NDArray[np.float64]],
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
    mirrored: bool = False,
) -> list[Differences]:
    """Simultaneous intervals of the mean of every column.

    Parameters
    ----------
    families : sequence of (n_i, m_i) arrays
        Paired differences, a row a sample. Blocks of other samples (tasks) are drawn independently; the intervals hold
        for the columns of all blocks at once.
    seed, draws : int
    level : float
        Confidence that no interval misses.
    mirrored : bool
        A column stands for its negative, too, as with pairs of which neither is the reference: both sides of an
        interval then reach equally far.

    Returns
    -------
    list of Differences
        One for each block. The order of samples changes nothing.

    Raises
    ------
    ValueError
        If a block has no sample, or the level is not between 0 and 1.
    """
    if not 0 < level < 1 or any(len(block) == 0 for block in families):
        raise ValueError(f"level {level} must lie between 0 and 1, and every block needs a sample")
    blocks = [in_order(block) for block in families]
    differ = [np.count_nonzero(block, axis=0) for block in blocks]
    fewest = fewest_that_differ([int(count) for counts in differ for count in counts], level)
    lowest, highest = np.zeros(draws), np.zeros(draws)
    for number, (block, counts) in enumerate(zip(blocks, differ, strict=True)):
        tested = block[:, (counts >= fewest) & (standard_error(block) > 0)]
        if tested.size:
            deviations = studentised(tested, [seed, number], draws)
            lowest, highest = np.minimum(lowest, deviations.min(axis=1)), np.maximum(highest, deviations.max(axis=1))
    if mirrored:
        highest = np.maximum(-lowest, highest)
        lowest = -highest
    below, above = _reach(lowest, highest, level)
    found = []
    for block, counts in zip(blocks, differ, strict=True):
        mean, error, few = block.mean(axis=0), standard_error(block), counts < fewest
        low, high = mean - below * error, mean + above * error
        low[few], high[few] = np.minimum(low[few], 0), np.maximum(high[few], 0)
        found.append(Differences(mean, low, high, counts))
    return found


def _reach(lowest: NDArray[np.float64], highest: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Standard errors that an interval reaches below and above its mean."""
    both = np.quantile(np.maximum(-lowest, highest), level, method="higher")
    above, below = (np.quantile(tail, (1 + level) / 2, method="higher") for tail in (-lowest, highest))
    return float(max(both, below)), float(max(both, above))


def fewest_that_differ(counts: Sequence[int], level: float = LEVEL) -> int:
    """Samples that must differ before an exact, corrected, two-sided sign test could show a difference.

    Parameters
    ----------
    counts : sequence of int
        Samples that differ, of each comparison. Those that cannot be shown anyway need no correction for (Tarone).

    >>> fewest_that_differ([500]), fewest_that_differ([500] * 25), fewest_that_differ([500] + [3] * 24)
    (6, 10, 6)
    """
    tests = 1
    while sum(count >= _fewest(tests, level) for count in counts) > tests:
        tests += 1
    return _fewest(tests, level)


def _fewest(tests: int, level: float) -> int:
    """The smallest k with 2 * 0.5^k <= (1 - level) / tests."""
    return math.ceil(math.log2(2 * tests / (1 - level)) - 1e-9)


def standard_error(block: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the mean of each column [m]; 0 for a single sample, of which no spread is known."""
    if len(block) == 1:
        return np.zeros(block.shape[1])
    # A constant column has a spread of rounding, by which nothing may be divided.
    spread = np.where(np.ptp(block, axis=0) > 0, block.std(axis=0, ddof=1), 0.0)
    return spread / math.sqrt(len(block))


def studentised(block: NDArray[np.float64], seed: Seed, draws: int = DRAWS) -> NDArray[np.float64]:
    """(mean of the draw - mean) / standard error of the draw, of each column: [draws, m].

    No error counts for less than half of that of all samples: a draw in which a column is all alike would else be
    infinitely far off, and decide about the intervals of all others.
    """
    centred = block - block.mean(axis=0)
    means = resampled_means(centred, seed, draws)
    squares = resampled_means(centred**2, seed, draws)  # the same seed: the same draws
    error = np.sqrt(np.maximum(squares - means**2, 0) / (len(block) - 1))
    return means / np.maximum(error, standard_error(block) / 2)


def resampled_means(block: NDArray[np.float64], seed: Seed, draws: int = DRAWS) -> NDArray[np.float64]:
    """Means of the columns [m] over samples drawn with replacement, all columns together: [draws, m]."""
    return np.concatenate([counts @ block / len(block) for counts in _draws(len(block), seed, draws)])


def interval(
    values: NDArray[np.float64], seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile interval of the mean of every column of [n, m], each for itself: [m] and [m]."""
    means = resampled_means(in_order(values), seed, draws)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def in_order(block: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows sorted by what is in them, so that no name or place of a sample decides what is drawn."""
    return block[np.lexsort(block.T[::-1])] if block.shape[1] else block


def _draws(samples: int, seed: Seed, draws: int) -> Iterator[NDArray[np.float64]]:
    """How often each sample is drawn, [some, samples] at a time."""
    generator = np.random.default_rng(seed)
    step = max(1, AT_ONCE // samples)
    for start in range(0, draws, step):
        some = min(step, draws - start)
        places = generator.integers(0, samples, (some, samples)) + samples * np.arange(some)[:, None]
        yield np.bincount(places.ravel(), minlength=some * samples).reshape(some, samples).astype(np.float64)
