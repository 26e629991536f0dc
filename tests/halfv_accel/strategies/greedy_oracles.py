"""Slow pieces of greedy choices, in float64 and by loops, which the tests' oracles put together."""

import math


def rows(tensor):
    """A [1, V, H] tensor as lists of float64."""
    return tensor[0].double().tolist()


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(a):
    length = math.sqrt(dot(a, a))
    return [x / length for x in a] if length else a


def distance(a, b):
    """Cosine distance."""
    return 1 - dot(unit(a), unit(b))


def first_largest(values):
    """Index of the largest value; the earliest of those that differ by no more than rounding."""
    largest = max(values)
    return next(index for index, value in enumerate(values) if value >= largest - 1e-9 * max(1, abs(largest)))


def top(scores, count, among):
    return sorted(among, key=lambda token: (-scores[token], token))[:count]


def left_beside(vector, basis):
    """What is left of a vector beside an orthonormal basis. Twice, since once loses digits."""
    for _ in range(2):
        for direction in basis:
            share = dot(vector, direction)
            vector = [x - share * d for x, d in zip(vector, direction, strict=True)]
    return vector


def largest_residuals(vectors, count, among, least=1e-9):
    """Greedy by Gram-Schmidt: (picks in order, whether others had nothing left)."""
    picks, basis = [], []
    among = list(among)
    while len(picks) < count:
        rest = [token for token in among if token not in picks]
        left = [left_beside(vectors[token], basis) for token in rest]
        spare = [dot(x, x) if dot(x, x) > least * dot(vectors[t], vectors[t]) else 0.0 for x, t in zip(left, rest)]
        if not spare or max(spare) <= 0:
            break
        at = first_largest([value / max(spare) for value in spare])
        picks.append(rest[at])
        basis.append(unit(left[at]))
    return picks
