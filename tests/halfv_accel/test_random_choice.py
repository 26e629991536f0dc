"""Laws of the random choice."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import HalfVError
from halfv_accel.architectures import middling
from halfv_accel.decoder import Decoder
from halfv_accel.strategies import RandomChoice, Sizes, resolve

seeds = st.integers(0, 2**32 - 1)


def view(counts, width=None):
    """Rows of so many tokens, packed to the left; states and scores are not there to be asked for."""
    width = width or max(counts)
    return SimpleNamespace(present=torch.arange(width) < torch.tensor(counts)[:, None])


@st.composite
def ragged(draw):
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
    return counts, [draw(st.integers(0, count)) for count in counts]


@given(ragged(), seeds)
def test_it_fills_the_budget_with_tokens_that_are_there(case, seed):
    counts, budget = case
    seen = view(counts)
    chosen = RandomChoice(seed).select(seen, torch.tensor(budget))
    assert chosen.sum(1).tolist() == budget
    assert not (chosen & ~seen.present).any()


@given(ragged(), seeds, st.integers(0, 5))
def test_a_row_is_chosen_alike_in_every_batch(case, seed, wider):
    counts, budget = case
    together = RandomChoice(seed).select(view(counts, max(counts) + wider), torch.tensor(budget))
    for row, (count, kept) in enumerate(zip(counts, budget, strict=True)):
        if count:
            alone = RandomChoice(seed).select(view([count]), torch.tensor([kept]))
            assert torch.equal(alone[0], together[row, :count])


def test_every_token_is_as_likely_as_any_other():
    draws = [RandomChoice(seed).select(view([8]), torch.tensor([2]))[0] for seed in range(2000)]
    shares = torch.stack(draws).float().mean(0)
    assert (shares - 0.25).abs().max() < 5 * (0.25 * 0.75 / 2000) ** 0.5


def test_it_counts_no_operations_and_goes_by_its_name():
    assert resolve("random_choice") == RandomChoice(seed=0)
    assert RandomChoice().flops(Sizes(Decoder.of(middling()), 100, 10)) == 0


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "1"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(HalfVError, match="seed is"):
        RandomChoice(seed)
