"""FitPrune's choice against its formula."""

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import FitPrune, Needs, resolve
from tests.halfv_accel.strategies.inside import DECODER, FreeSignals, holds, shares, top
from tests.halfv_accel.strategies.views import random_view


def oracle(view, row, kept):
    text, picture = (view.signals[f"{of} attention"][row].double() for of in ("text", "visual"))  # [heads, ...]
    words, tokens = int(view.text_present[row].sum()), int(view.present[row].sum())
    scores = []
    for token in range(tokens):
        from_text = max(sum(head[word, token] for word in range(words)) / words for head in text)
        scores.append(float(from_text * max(head[token] for head in picture)))
    return sorted(top(scores, kept))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("ratio", [0, 0.3, 0.75, 1])
def test_it_keeps_what_text_and_picture_attend_to(seed, coarse, ratio):
    view = random_view(seed=seed, coarse=coarse)
    if coarse:  # means of exact numbers are exact in groups of a power of two
        view = random_view(texts=(4, 2, 4, 8), seed=seed, coarse=True)
    budget = shares(view, ratio)
    chosen = holds(FitPrune(), view, budget)
    for row, kept in enumerate(budget.tolist()):
        assert chosen[row].nonzero()[:, 0].tolist() == oracle(view, row, kept)


def test_all_text_asks():
    view, asked = random_view(), []
    whole = view.text_attention
    view.text_attention = lambda queries, scored_by: asked.append((queries, scored_by)) or whole(queries)
    FitPrune(scored_by="own").select(view, shares(view, 0.5))
    assert torch.equal(asked[0][0], view.text_present)
    assert asked[0][1] == "own"


def test_its_cost_is_that_of_the_signals():
    class Sizes(FreeSignals):
        def text_attention_flops(self, queries):
            return 1000 * queries

        def visual_attention_flops(self):
            return 7

    assert FitPrune().flops(Sizes(DECODER, 12, 4, 5)) == 5007


def test_names_and_needs():
    assert resolve("fitprune") == FitPrune(scored_by="previous")
    assert FitPrune().needs == Needs(before=True)
    assert FitPrune(scored_by="own").needs == Needs()
    with pytest.raises(HalfVError, match="scored_by is 'next'"):
        FitPrune(scored_by="next")
