"""Whole numbers divided in proportion, and tokens spread evenly."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel.strategies.shared.dividing import apportion, evenly_spaced, top_k_in_groups


def fill(total, weights, capacity):
    """Exact shares, one full part after the other."""
    full, shares = set(), {}
    while True:
        rest = total - sum(capacity[part] for part in full)
        parts = [part for part in range(len(weights)) if part not in full and weights[part] > 0 and capacity[part]]
        whole = sum(Fraction(weights[part]) for part in parts)
        shares = {part: rest * Fraction(weights[part]) / whole for part in parts}
        over = {part for part in parts if shares[part] >= capacity[part]}
        if not over:
            return full, shares
        full |= over


def divided(total, weights, capacity):
    able = sum(size for size, weight in zip(capacity, weights, strict=True) if weight > 0)
    if total > able:  # parts of weight zero, by their capacity
        first = [size if weight > 0 else 0 for size, weight in zip(capacity, weights, strict=True)]
        left = [size - taken for size, taken in zip(capacity, first, strict=True)]
        return [a + b for a, b in zip(first, divided(total - able, left, left), strict=True)]
    full, shares = fill(total, weights, capacity)
    quota = [capacity[part] if part in full else int(shares.get(part, 0)) for part in range(len(weights))]
    by_remainder = sorted(shares, key=lambda part: (-(shares[part] - int(shares[part])), part))
    for part in by_remainder[: total - sum(quota)]:
        quota[part] += 1
    return quota


@st.composite
def parts(draw):
    count = draw(st.integers(1, 6))
    capacity = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    weights = draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
    return draw(st.integers(0, sum(capacity))), weights, capacity


@given(parts())
def test_whole_weights_are_divided_exactly(case):
    total, weights, capacity = case
    quota = apportion(torch.tensor([total]), torch.tensor([weights]), torch.tensor([capacity]))[0].tolist()
    assert quota == divided(total, weights, capacity)


@given(parts(), st.floats(1e-9, 1e3))
def test_any_weights_fill_the_total_within_the_capacities(case, scale):
    total, weights, capacity = case
    weights = torch.tensor([weights]).float().sqrt() * scale
    quota = apportion(torch.tensor([total]), weights, torch.tensor([capacity]))[0]
    assert quota.sum() == total and (quota >= 0).all() and (quota <= torch.tensor(capacity)).all()


def test_weights_that_are_no_numbers_count_as_zero():
    weights = torch.tensor([[torch.nan, 1.0, torch.inf, -1.0]])
    assert apportion(torch.tensor([4]), weights, torch.full((1, 4), 9)).tolist() == [[0, 4, 0, 0]]
    assert apportion(torch.tensor([4]), weights * torch.nan, torch.full((1, 4), 9)).tolist() == [[1, 1, 1, 1]]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_tokens_are_evenly_spaced(candidates, data):
    places = [place for place, candidate in enumerate(candidates) if candidate]
    count = data.draw(st.integers(0, len(places)))
    chosen = evenly_spaced(torch.tensor([candidates]), torch.tensor([count]))[0]
    expected = [places[i * len(places) // count] for i in range(count)]
    assert chosen.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("seed", range(5))
def test_each_group_keeps_its_best(seed, coarse):
    draw = torch.Generator().manual_seed(seed)
    present = torch.arange(14) < torch.tensor([14, 9, 0])[:, None]
    scores = torch.rand(3, 14, generator=draw)
    scores = (scores * 3).round() if coarse else scores
    groups, quotas = (torch.randint(0, n, size, generator=draw) for n, size in ((4, (3, 14)), (5, (3, 4))))
    chosen = top_k_in_groups(scores, groups, quotas, present)
    for row in range(3):
        expected = set()
        for group in range(4):
            members = [place for place in range(14) if present[row, place] and groups[row, place] == group]
            members.sort(key=lambda place: (-float(scores[row, place]), place))
            expected |= set(members[: int(quotas[row, group])])
        assert set(chosen[row].nonzero().flatten().tolist()) == expected
