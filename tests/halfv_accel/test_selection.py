"""Laws of budgets, ranking and farthest points."""

from fractions import Fraction
from math import floor

import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel.budget import floor_share, token_budget
from halfv_accel.engine.rows import Rows
from halfv_accel.strategies import anchor_cover
from halfv_accel.strategies.anchor_cover import AnchorCover, farthest_points
from halfv_accel.strategies.ranking import top_k_mask


@st.composite
def ragged(draw, width=9):
    """Present places packed to the left, a budget and anchors that fit, and states of entries +-1 in 4 dimensions.

    Such states have norm 2, so that all arithmetic of farthest points is exact and ties are real ties.
    """
    batch = draw(st.integers(1, 3))
    counts = [draw(st.integers(0, width)) for _ in range(batch)]
    counts[0] = max(1, counts[0])
    budget = [draw(st.integers(min(1, n), n)) for n in counts]
    orders = [draw(st.permutations(range(n))) for n in counts]
    anchors = [sorted(order[: draw(st.integers(0, b))]) for order, b in zip(orders, budget, strict=True)]
    bits = draw(st.lists(st.booleans(), min_size=batch * width * 4, max_size=batch * width * 4))
    states = torch.tensor(bits).view(batch, width, 4).float() * 2 - 1
    return states, counts, budget, anchors


def naive_farthest(states, count, budget, anchors):
    """Eq. 5 by comparing all distances; equal distances go to the lowest index."""
    unit = states / states.norm(dim=-1, keepdim=True)
    chosen = list(anchors) if anchors else [0][:budget]
    while len(chosen) < budget:
        rest = [i for i in range(count) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(float((unit[i] - unit[c]).square().sum()) for c in chosen), -i)))
    return set(chosen)


def as_mask(rows, width):
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, places in enumerate(rows):
        mask[row, list(places)] = True
    return mask


@given(ragged())
def test_farthest_points_equal_the_naive_greedy(case):
    states, counts, budget, anchors = case
    width = states.shape[1]
    present = torch.arange(width) < torch.tensor(counts)[:, None]
    mine = farthest_points(states, present, as_mask(anchors, width), torch.tensor(budget))
    naive = [naive_farthest(*row) for row in zip(states, counts, budget, anchors, strict=True)]
    assert torch.equal(mine, as_mask(naive, width))


@given(ragged())
def test_the_table_of_cosines_changes_nothing(case):
    states, counts, budget, anchors = case
    present = torch.arange(states.shape[1]) < torch.tensor(counts)[:, None]
    arguments = (states, present, as_mask(anchors, states.shape[1]), torch.tensor(budget))
    with_table, limit = farthest_points(*arguments), anchor_cover.TABLE_LIMIT
    try:
        anchor_cover.TABLE_LIMIT = 0
        assert torch.equal(farthest_points(*arguments), with_table)
    finally:
        anchor_cover.TABLE_LIMIT = limit


@given(ragged(), st.integers(0, 9))
def test_farthest_points_ignore_length(case, seed):
    """Only directions count."""
    states, counts, budget, anchors = case
    present = torch.arange(states.shape[1]) < torch.tensor(counts)[:, None]
    lengths = 2.0 ** torch.randint(-3, 4, (*states.shape[:2], 1), generator=torch.Generator().manual_seed(seed))
    rest = (present, as_mask(anchors, states.shape[1]), torch.tensor(budget))
    assert torch.equal(farthest_points(states * lengths, *rest), farthest_points(states, *rest))


@given(ragged(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.randoms())
def test_anchor_cover_fills_the_budget_and_keeps_its_anchors(case, ratio, random):
    states, counts, budget, _ = case
    present = torch.arange(states.shape[1]) < torch.tensor(counts)[:, None]
    scores = torch.tensor([[random.random() for _ in row] for row in present]) * present
    view = type("View", (), dict(states=states, present=present, last_token_scores=lambda self, rotary: scores))()
    chosen = AnchorCover(ratio).select(view, torch.tensor(budget))
    anchors = top_k_mask(scores, present, torch.tensor([floor_share(b, ratio) for b in budget]))
    assert chosen.sum(1).tolist() == budget
    assert not (chosen & ~present).any()
    assert not (anchors & ~chosen).any()


@given(ragged(), st.lists(st.integers(0, 3), min_size=27, max_size=27))
def test_top_k_takes_the_highest_and_then_the_earliest(case, values):
    states, counts, budget, _ = case
    width = states.shape[1]
    present = torch.arange(width) < torch.tensor(counts)[:, None]
    scores = torch.tensor(values[: len(counts) * width]).view(len(counts), width).float()
    rows = zip(scores.tolist(), counts, budget, strict=True)
    wanted = [sorted(range(n), key=lambda i, row=row: (-row[i], i))[:b] for row, n, b in rows]
    assert torch.equal(top_k_mask(scores, present, torch.tensor(budget)), as_mask(wanted, width))


@given(st.integers(0, 10_000), st.integers(1, 1000))
def test_a_budget_is_the_exact_floor_of_decimal_ratios(count, thousandths):
    """0.29 * 100 is 28.999999999999996, and still 29 tokens stay."""
    exact = floor(count * Fraction(thousandths, 1000))
    assert floor_share(count, thousandths / 1000) == exact
    assert token_budget(count, thousandths / 1000) == (max(1, exact) if count else 0)


@given(st.integers(1, 10_000), st.integers(1, 50))
def test_a_budget_is_exact_for_unit_fractions_and_never_too_large(count, parts):
    assert token_budget(count * parts, 1 / parts) == count
    assert token_budget(count, 1.0) == count
    assert 1 <= token_budget(count, 1 / parts) <= count


masks = st.integers(1, 8).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4)
)


@given(masks)
def test_rows_gather_the_selected_and_scatter_nothing_else(rows):
    mask = torch.tensor(rows)
    full = torch.arange(mask.numel() * 2.0).view(*mask.shape, 2)
    for packed in (Rows.packed_right(mask), Rows.packed_left(mask)):
        present = packed.present()
        for row in range(len(rows)):
            assert packed.index[row][present[row]].tolist() == mask[row].nonzero()[:, 0].tolist()
        assert torch.equal(packed.scatter(full, -packed.gather(full)), torch.where(mask[..., None], -full, full))
        assert (packed.valid is None) == (len(set(mask.sum(1).tolist())) == 1)
