"""Outliers, samples, and neighbours taken up."""

from fractions import Fraction

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import Adaptive, Merging, PruMerge, resolve
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself, merged_alike, tokens
from tests.halfv_accel.strategies.test_cls_attention import scores
from tests.halfv_accel.strategies.views import random_view


def outliers(score):
    if not score:
        return []
    ordered = sorted(Fraction(x) for x in score)

    def quartile(q):
        at = q * Fraction(len(ordered) - 1, 4)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])

    limit = quartile(3) + Fraction(3, 2) * (quartile(3) - quartile(1))
    return [token for token, x in enumerate(score) if x > limit]


def oracle(view, kept):
    score = scores(view)
    important = sorted(outliers(score), key=lambda token: (-score[token], token))[:kept]
    others = [token for token in range(len(score)) if token not in important]
    count = kept - len(important)
    return important + [others[i * len(others) // count] for i in range(count)]


def merge(neighbours):
    def merged(view, places):
        weight = scores(view)
        states, keys = view.states[0].double(), view.vision("keys")[0].double()
        dropped = [token for token in range(len(weight)) if token not in places]
        result = {}
        for place in places:
            near = {token: float((keys[:, place] * keys[:, token]).sum()) for token in dropped}
            members = [place, *sorted(dropped, key=lambda token: (-near[token], token))[:neighbours]]
            result[place] = sum(weight[token] * states[token] for token in members) / sum(weight[t] for t in members)
        return result

    return merged


def peaked(**options):
    """A view with a few tokens of far higher attention."""
    view = random_view(**options)
    draw = torch.Generator().manual_seed(99)
    peaks = (torch.rand(view.present.shape, generator=draw) < 0.2) * 5 * view.present
    view.signals["vision", "attention"] = view.signals["vision", "attention"] + peaks[:, None]
    return view


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [random_view, peaked])
def test_it_equals_the_oracle(make, seed, budget, coarse):
    view = make(seed=seed, coarse=coarse)
    agrees(PruMerge(), view, budget, oracle)
    if not coarse:
        for neighbours in (0, 2, 32):
            merged_alike(PruMerge(neighbours), view, budget, merge(neighbours))


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_count_adapts_within_its_bounds(seed, samples):
    strategy, view = PruMerge(samples=samples), peaked(seed=seed)
    found = [len(outliers(scores(view.row(row)))) * (1 + samples) for row in range(4)]
    assert max(found) > 0
    all_of_them = torch.tensor([12, 9, 0, 16])
    assert strategy.count(view, torch.zeros(4).long(), all_of_them * 9).tolist() == found
    least, most = torch.tensor([2, 2, 0, 2]), torch.tensor([3, 3, 0, 3])
    assert strategy.count(view, least, most).tolist() == [
        min(max(x, 2), 3) if row != 2 else 0 for row, x in enumerate(found)
    ]
    assert isinstance(strategy, Adaptive) and isinstance(strategy, Merging)


def test_a_merged_token_is_an_average():
    view = random_view(seed=3)
    view.states = torch.full_like(view.states, 2.5)
    chosen = PruMerge().select(view, torch.tensor([3, 3, 0, 3]))
    torch.testing.assert_close(PruMerge().merge(view, chosen)[chosen], view.states[chosen])


def test_without_attention_nothing_is_merged():
    view = random_view(seed=3)
    view.signals["vision", "attention"] = torch.zeros_like(view.signals["vision", "attention"])
    chosen = PruMerge().select(view, torch.tensor([3, 3, 0, 3]))
    assert tokens(chosen) == [[0, 4, 8], [0, 3, 6], [], [0, 5, 10]]
    assert torch.equal(PruMerge().merge(view, chosen)[chosen], view.states[chosen])


@pytest.mark.parametrize("kept", [1, 6, 15])
def test_it_counts_its_operations(kept):
    counts_itself(PruMerge(), random_view((16,), (3,)), kept)


@pytest.mark.parametrize("wrong", [dict(neighbours=-1), dict(samples=0.5), dict(samples=True), dict(vision_layer=1.0)])
def test_parameters_are_checked(wrong):
    assert resolve("prumerge") == PruMerge(32, 3, -2)
    with pytest.raises(HalfVError, match=f"{next(iter(wrong))} is"):
        PruMerge(**wrong)
