"""Laws of budgets and ranking."""

from fractions import Fraction
from math import floor

import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel.budget import floor_share, token_budget
from halfv_accel.engine.rows import Rows
from halfv_accel.strategies.anchor_cover import AnchorCover
from halfv_accel.strategies.shared.ranking import top_k_mask


@st.composite
def ragged(draw, width=9):
    """Present places packed to the left, a budget and anchors that fit, and states of entries +-1 in 4 dimensions."""
    batch = draw(st.integers(1, 3))
    counts = [draw(st.integers(0, width)) for _ in range(batch)]
    counts[0] = max(1, counts[0])
    budget = [draw(st.integers(min(1, n), n)) for n in counts]
    orders = [draw(st.permutations(range(n))) for n in counts]
    anchors = [sorted(order[: draw(st.integers(0, b))]) for order, b in zip(orders, budget, strict=True)]
    bits = draw(st.lists(st.booleans(), min_size=batch * width * 4, max_size=batch * width * 4))
    states = torch.tensor(bits).view(batch, width, 4).float() * 2 - 1
    return states, counts, budget, anchors


def as_mask(rows, width):
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, places in enumerate(rows):
        mask[row, list(places)] = True
    return mask


@given(ragged(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.randoms())
def test_anchor_cover_fills_the_budget_and_keeps_its_anchors(case, ratio, random):
    states, counts, budget, _ = case
    present = torch.arange(states.shape[1]) < torch.tensor(counts)[:, None]
    scores = torch.tensor([[random.random() for _ in row] for row in present]) * present
    view = type(
        "View", (), dict(states=states, present=present, last_token_scores=lambda self, rotary, scored_by: scores)
    )()
    chosen = AnchorCover(ratio).select(view, torch.tensor(budget))
    wanted = [max(floor_share(b, ratio), min(b, 1) if ratio else 0) for b in budget]  # the text always has a say
    anchors = top_k_mask(scores, present, torch.tensor(wanted))
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
