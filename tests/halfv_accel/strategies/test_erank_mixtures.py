"""Mixtures of attention and diversity whose shares follow effective rank (AdaVTP, Tables 5 and 6)."""

import math
from dataclasses import replace

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import (
    ClsAttention,
    DivPrune,
    ErankBat,
    ErankDivPrune,
    ErankVisPruner,
    Merging,
    VisPruner,
    erank_divprune,
    needs_of,
    resolve,
)
from halfv_accel.strategies.shared.cosines import cosines
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself, merged_alike, tokens
from tests.halfv_accel.strategies.greedy_oracles import rows, top
from tests.halfv_accel.strategies.test_adavtp import mean_attention, slow_rank
from tests.halfv_accel.strategies.test_divprune import diverse_among
from tests.halfv_accel.strategies.test_sparsevlm import peaks_oracle
from tests.halfv_accel.strategies.test_vispruner import distinct
from tests.halfv_accel.strategies.views import random_view

CLASSES = [ErankBat, ErankDivPrune, ErankVisPruner]
OPTIONS = [
    dict(),
    dict(erank_avg=8.0),
    dict(erank_avg=4.0, slope=0.9),
    dict(slope=2.0),
    dict(important=0.3, slope=-2.0),
]
every_class = pytest.mark.parametrize("method", CLASSES)
all_options = pytest.mark.parametrize("options", OPTIONS, ids=str)


def split(strategy, view, kept):
    """Tokens that go by attention, all others, and how many of these stay."""
    states, attention = rows(view.states), mean_attention(view)
    rank = slow_rank(states) if states else 1.0
    share = strategy.important + strategy.slope * (1 - rank / strategy.erank_avg)
    many = math.floor(kept * min(1, max(0, share)) + 1e-9)
    important = top(attention, many, range(len(states)))
    return important, [token for token in range(len(states)) if token not in important], kept - many


def clusters(view, others, count):
    """Others in their clusters, the most attended one of each first."""
    attention, states = mean_attention(view), rows(view.states)
    ranked = top(attention, len(others), others)
    groups = peaks_oracle([states[token] for token in ranked], count) if count else []
    return [[ranked[place] for place in sorted(group)] for group in groups]


def diversity(strategy, view, others, count):
    if isinstance(strategy, ErankDivPrune):
        return diverse_among(rows(view.states), others, count)
    if isinstance(strategy, ErankVisPruner):
        return distinct(view.vision("features")[0].double().tolist(), others, count, strategy.per_round)
    return [group[0] for group in clusters(view, others, count)]


def oracle_of(strategy):
    def oracle(view, kept):
        important, others, count = split(strategy, view, kept)
        return important + diversity(strategy, view, others, count)

    return oracle


@every_class
@all_options
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(3))
def test_they_equal_the_oracle(method, options, seed, budget):
    agrees(method(**options), random_view(seed=seed), budget, oracle_of(method(**options)))


def test_the_cases_above_have_all_kinds_of_shares():
    """Nothing, something and everything by attention."""
    shares = set()
    for options in OPTIONS:
        for row in (0, 1, 3):
            view = random_view(seed=0).row(row)
            important, _, count = split(ErankBat(**options), view, 8)
            shares.add("all" if not count else "some" if important else "none")
    assert shares == {"all", "some", "none"}


def merged_of(strategy):
    def merged(view, kept):
        important, others, count = split(strategy, view, len(kept))
        found = {token: view.states[0, token].double() for token in important}
        for group in clusters(view, others, count):
            weights = torch.tensor([mean_attention(view)[token] for token in group], dtype=torch.float64)
            found[group[0]] = (weights[:, None] * view.states[0, group].double()).sum(0) / weights.sum()
        return found

    return merged


@pytest.mark.parametrize("seed", range(3))
@all_options
def test_a_cluster_is_merged_by_attention_into_its_most_attended_member(seed, options):
    for budget in BUDGETS:
        merged_alike(ErankBat(**options), random_view(seed=seed), budget, merged_of(ErankBat(**options)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stands_for_itself_is_the_same_to_the_last_bit(dtype):
    view = random_view((9,), (2,), seed=1)
    view.states = view.states.to(dtype)
    strategy = ErankBat(slope=0.0)
    chosen = strategy.select(view, torch.tensor([6]))
    states = strategy.merge(view, chosen)
    important = ClsAttention().select(view, torch.tensor([3]))
    assert states.dtype == dtype
    assert torch.equal(states[important], view.states[important])
    assert not torch.equal(states[chosen], view.states[chosen])
    assert torch.equal(strategy.merge(view, view.present), view.states)


@every_class
def test_a_simple_picture_has_more_attention_and_a_complex_one_less(method):
    view = random_view((16,), (2,), seed=3)
    budget = torch.tensor([8])
    alone = ClsAttention().select(view, budget)
    assert torch.equal(method(erank_avg=100.0, slope=1.0).select(view, budget), alone)
    counts = [
        int(method(erank_avg=average, slope=1.0).important_tokens(view, budget).sum())
        for average in (100.0, 12.0, 9.0, 7.0, 1.0)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[2] > counts[-1] == 0


@pytest.mark.parametrize("budget", BUDGETS)
def test_without_a_slope_they_are_the_methods_as_they_were(budget):
    view, wanted = random_view(seed=2), torch.tensor(budget)
    assert torch.equal(ErankVisPruner(slope=0.0).select(view, wanted), VisPruner().select(view, wanted))
    assert torch.equal(ErankDivPrune(important=0.0, slope=0.0).select(view, wanted), DivPrune().select(view, wanted))


@every_class
@pytest.mark.parametrize("kept", [1, 2, 7])
@pytest.mark.parametrize("average", [1.0, 8.0, 94.87])
def test_they_count_their_operations_whatever_the_picture(method, average, kept):
    counts_itself(method(erank_avg=average), random_view((16,), (3,)), kept)


@every_class
def test_they_go_by_their_names(method):
    name = f"erank_{method.__name__.removeprefix('Erank').lower()}"
    assert resolve(name) == method(important=0.5, slope=0.5, erank_avg=94.87, vision_layer=-2)
    assert issubclass(ErankBat, Merging) and method.separators == "last"
    assert ("attention", 3) in needs_of(method(vision_layer=3)).vision


@every_class
@pytest.mark.parametrize(
    "options",
    [dict(important=1.1), dict(slope=math.nan), dict(slope="steep"), dict(erank_avg=0), dict(vision_layer=None)],
    ids=str,
)
def test_what_makes_no_sense_is_refused(method, options):
    with pytest.raises(HalfVError, match=f"{next(iter(options))} is"):
        method(**options)
    with pytest.raises(HalfVError, match="per_round is"):
        replace(ErankVisPruner(), per_round=0)


def test_rounding_does_not_part_two_tokens_that_are_nearest_to_each_other(monkeypatch):
    def rounded(some, others):
        table = cosines(some, others)
        return table + table.new_full(table.shape[1:], 1e-6).triu(1)

    view = random_view((4,), (1,))
    view.states = torch.tensor([[[1.0, 0.02], [-1.0, 0.6], [-0.6, 1.0], [1.0, 0.01]]])
    strategy = ErankDivPrune(important=0.0, slope=0.0)
    assert tokens(strategy.select(view, torch.tensor([1]))) == [[1]]
    monkeypatch.setattr(erank_divprune, "cosines", rounded)
    assert tokens(strategy.select(view, torch.tensor([1]))) == [[1]]


def test_equal_tokens_are_chosen_in_their_order():
    view = random_view((6,), (1,))
    view.states = torch.ones_like(view.states)
    view.signals["vision", "attention"] = torch.ones(1, 2, 6)
    assert tokens(ErankDivPrune(slope=0.0).select(view, torch.tensor([4]))) == [[0, 1, 2, 3]]
