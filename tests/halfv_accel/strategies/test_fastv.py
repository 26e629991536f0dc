"""FastV against its formula."""

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import FastV, Needs, resolve
from tests.halfv_accel.strategies.inside import DECODER, FreeSignals, holds, shares, top
from tests.halfv_accel.strategies.views import random_view


def oracle(view, row, kept):
    attention = view.signals["text attention"][row, :, int(view.text_present[row].sum()) - 1].double()
    return sorted(top(attention.sum(0).tolist()[: int(view.present[row].sum())], kept))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("ratio", [0, 0.3, 0.75, 1])
def test_it_keeps_what_the_last_text_token_attends_to(seed, coarse, ratio):
    view = random_view(seed=seed, coarse=coarse)
    budget = shares(view, ratio)
    chosen = holds(FastV(), view, budget)
    for row, kept in enumerate(budget.tolist()):
        assert chosen[row].nonzero()[:, 0].tolist() == oracle(view, row, kept)


def test_it_asks_for_the_layer_that_scores():
    assert FastV().needs == Needs(before=True)
    assert FastV(scored_by="own").needs == Needs()
    assert resolve("fastv") == FastV(scored_by="previous")


def test_the_scoring_layer_is_passed_on():
    view, asked = random_view(), []
    view.text_attention = lambda queries=None, scored_by="previous": (
        asked.append((queries, scored_by)) or view.signals["text attention"][:, :, 0]
    )
    FastV(scored_by="own").select(view, shares(view, 0.5))
    assert asked == [(None, "own")]


def test_its_only_cost_is_one_query():
    class Sizes(FreeSignals):
        def text_attention_flops(self, queries):
            return 1000 * queries

    assert FastV().flops(Sizes(DECODER, 12, 4, 5)) == 1000


def test_another_layer_is_refused():
    with pytest.raises(HalfVError, match="scored_by is 'next'"):
        FastV(scored_by="next")


def test_a_view_without_tokens_stays_empty():
    view = random_view(counts=(0, 0), texts=(2, 3))
    assert FastV().select(view, torch.tensor([0, 0])).shape == (2, 0)
