"""InfoPrune: a pool by attention, marginal information, merging; and the cut in the middle."""

import math

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import InfoPrune, Merging, needs_of, resolve
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself, merged_alike, tokens
from tests.halfv_accel.strategies.greedy_oracles import distance, dot, first_largest, largest_residuals, rows, top
from tests.halfv_accel.strategies.views import random_view

SETTINGS = [InfoPrune(), InfoPrune(pool=1.5, temperature=0.2, exponent=2.0, inertia=3.0), InfoPrune(pool=100.0)]


def mean_attention(view):
    heads = view.vision("attention")[0].double().tolist()
    return [sum(column) / len(heads) for column in zip(*heads, strict=True)]


def oracle_of(strategy):
    def oracle(view, kept):
        states, attention = rows(view.states), mean_attention(view)
        weights = [math.exp(a / strategy.temperature) for a in attention]
        priors = [(weight / math.fsum(weights)) ** strategy.exponent for weight in weights]
        pool = sorted(top(attention, math.floor(kept * strategy.pool), range(len(states))))
        scaled = [[math.sqrt(q) * x for x in state] for q, state in zip(priors, states, strict=True)]
        picks = largest_residuals(scaled, kept, pool)
        return picks + top(attention, kept - len(picks), [token for token in pool if token not in picks])

    return oracle


def merged_of(strategy):
    def merged(view, kept):
        states = rows(view.states)
        found = {}
        for place in kept:
            total, count = [strategy.inertia * x for x in states[place]], strategy.inertia
            for token, state in enumerate(states):
                if token not in kept:
                    nearest = kept[first_largest([-distance(state, states[other]) for other in kept])]
                    if nearest == place:
                        total, count = [a + b for a, b in zip(total, state, strict=True)], count + 1
            found[place] = torch.tensor([x / count for x in total], dtype=torch.float64)
        return found

    return merged


@pytest.mark.parametrize("strategy", SETTINGS, ids=str)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_oracle(strategy, seed, budget):
    view = random_view(seed=seed)
    agrees(strategy, view, budget, oracle_of(strategy))
    merged_alike(strategy, view, budget, merged_of(strategy))


def test_picks_end_where_no_token_has_more_left_than_epsilon():
    """Two directions in the pool: the third token is the one with the next attention, not the next residual."""
    view = random_view((6,), (1,), seed=1)
    view.states = torch.zeros(1, 6, 12)
    for token, (place, length) in enumerate([(0, 1.0), (1, 1.0), (0, 0.5), (2, 1e-3), (1, 9.0), (2, 9.0)]):
        view.states[0, token, place] = length
    view.signals["vision", "attention"] = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]).expand(1, 2, 6) / 100
    assert tokens(InfoPrune(pool=4 / 3).select(view, torch.tensor([3]))) == [[0, 1, 2]]
    assert tokens(InfoPrune(pool=4 / 3, saturation=0).select(view, torch.tensor([3]))) == [[0, 1, 3]]


def test_nothing_outside_the_pool_is_kept():
    view = random_view((16,), (3,), seed=4)
    pool = set(top(mean_attention(view), 7, range(16)))
    assert set(tokens(InfoPrune(pool=1.8).select(view, torch.tensor([4])))[0]) <= pool
    assert set(tokens(InfoPrune(pool=1.0).select(view, torch.tensor([4])))[0]) == set(
        top(mean_attention(view), 4, range(16))
    )


def test_merging_keeps_the_sum_of_a_cluster():
    """With an inertia of one, each kept state is the mean of those that it stands for: sizes times means add up."""
    view = random_view((12,), (1,), seed=6)
    kept = InfoPrune().select(view, torch.tensor([5]))
    states = InfoPrune().merge(view, kept)
    places = tokens(kept)[0]
    sizes = dict.fromkeys(places, 1)
    for token in set(range(12)) - set(places):
        sizes[min(places, key=lambda place, token=token: distance(*view.states[0, [token, place]].tolist()))] += 1
    total = sum(size * states[0, place].double() for place, size in sizes.items())
    torch.testing.assert_close(total, view.states[0].double().sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_nothing_joins_stays_as_it_is(dtype):
    view = random_view((4,), (1,))
    view.states = torch.eye(12)[None, :4].mul(0.3).to(dtype)
    view.states[0, 3] = view.states[0, 0] * 3
    states = InfoPrune(inertia=0.1).merge(view, torch.tensor([[True, True, True, False]]))
    assert states.dtype == dtype
    assert torch.equal(states[0, 1:3], view.states[0, 1:3])
    assert not torch.equal(states[0, 0], view.states[0, 0])


def test_equal_tokens_are_kept_in_their_order():
    view = random_view((6, 3), (1, 1))
    view.states = torch.ones_like(view.states)
    view.signals["vision", "attention"] = torch.ones(2, 2, 6)
    chosen = InfoPrune().select(view, torch.tensor([4, 1]))
    assert tokens(chosen) == [[0, 1, 2, 3], [0]]


def test_budgets_are_exact_whatever_the_states():
    view = random_view()
    view.states[:, 3] = torch.nan
    view.states[:, 4, 0] = torch.inf
    view.states[:, 5] = 0
    for budget in BUDGETS:
        chosen = InfoPrune().select(view, torch.tensor(budget))
        assert chosen.sum(1).tolist() == list(budget)
        assert not (chosen & ~view.present).any()
        InfoPrune().merge(view, chosen)


@pytest.mark.parametrize("kept", [1, 2, 5, 15])
@pytest.mark.parametrize("strategy", SETTINGS, ids=str)
def test_it_counts_its_operations(strategy, kept):
    counts_itself(strategy, random_view((16,), (3,)), kept)


def test_it_goes_by_its_name_and_asks_for_attention():
    assert resolve("infoprune") == InfoPrune(2.0, 0.7, 0.5)
    assert needs_of(InfoPrune(vision_layer=3)).vision == (("attention", 3),)
    assert isinstance(InfoPrune(), Merging)
    assert InfoPrune().separators == "last"


@pytest.mark.parametrize(
    "options",
    [
        dict(pool=0.9),
        dict(pool=math.inf),
        dict(temperature=0),
        dict(exponent=-1),
        dict(saturation=math.nan),
        dict(inertia=True),
        dict(vision_layer="last"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(HalfVError, match=f"{next(iter(options))} is"):
        InfoPrune(**options)


def test_the_oracle_of_residuals_is_the_determinant():
    """The oracle itself: squared residuals multiply to the Gram determinant."""
    vectors = rows(random_view((5,), (1,), seed=9).states)
    picks = largest_residuals(vectors, 5, range(5))
    gram = torch.tensor([[dot(vectors[a], vectors[b]) for b in picks] for a in picks], dtype=torch.float64)
    steps = [float(torch.linalg.det(gram[: n + 1, : n + 1]) / torch.linalg.det(gram[:n, :n])) for n in range(1, 5)]
    assert steps == sorted(steps, reverse=True)
