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
    """Greedy by Gram-Schmidt: fewer picks than asked for where the picked ones span the others."""
    picks, basis, among = [], [], list(among)
    while len(picks) < count:
        rest = [token for token in among if token not in picks]
        left = {token: left_beside(vectors[token], basis) for token in rest}
        spare = {token: dot(left[token], left[token]) for token in rest}
        rest = [token for token in rest if spare[token] > least * dot(vectors[token], vectors[token])]
        if not rest:
            break
        largest = max(spare[token] for token in rest)
        picks.append(rest[first_largest([spare[token] / largest for token in rest])])
        basis.append(unit(left[picks[-1]]))
    return picks
