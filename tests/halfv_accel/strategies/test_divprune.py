"""DivPrune and farthest points without a seed: max-min diversity."""

from unittest.mock import patch

import pytest
import torch

from halfv_accel.strategies import DivPrune, FarthestPoints, divprune, needs_of, resolve
from halfv_accel.strategies.shared.cosines import products
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself
from tests.halfv_accel.strategies.greedy_oracles import distance, first_largest, rows
from tests.halfv_accel.strategies.views import random_view


def grown(states, among, kept, picks):
    """The most distant token again and again."""
    while len(picks) < kept:
        rest = [token for token in among if token not in picks]
        nearest = [min(distance(states[token], states[pick]) for pick in picks) for token in rest]
        picks.append(rest[first_largest(nearest)])
    return picks


def diverse_among(states, among, kept):
    """DivPrune among some of the tokens."""
    if not kept:
        return []
    nearest = [min([distance(states[i], states[j]) for j in among if i != j], default=2) for i in among]
    return grown(states, among, kept, [among[first_largest(nearest)]])


def diverse(view, kept):
    states = rows(view.states)
    return diverse_among(states, range(len(states)), kept)


def farthest(view, kept):
    states = rows(view.states)
    return grown(states, range(len(states)), kept, [0]) if kept else []


METHODS = {"divprune": (DivPrune(), diverse), "farthest_points": (FarthestPoints(), farthest)}
every_method = pytest.mark.parametrize("name", METHODS)


@every_method
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_oracle(name, seed, budget):
    strategy, oracle = METHODS[name]
    agrees(strategy, random_view(seed=seed), budget, oracle)


@every_method
def test_an_isolated_pair_ties_and_its_earlier_token_is_first(name):
    """Tokens 1 and 2 are nearest to each other and far from all others."""
    view = random_view((4,), (1,))
    view.states = torch.tensor([[[1.0, 0.02], [-1.0, 0.6], [-0.6, 1.0], [1.0, 0.01]]])
    first = {"divprune": 1, "farthest_points": 0}[name]
    assert METHODS[name][0].select(view, torch.tensor([1])).nonzero()[:, 1].tolist() == [first]


def test_rounding_does_not_part_two_tokens_that_are_nearest_to_each_other(monkeypatch):
    def rounded(some, others):
        table = products(some, others)
        return table + table.new_full(table.shape[1:], 1e-6).triu(1)

    view = random_view((4,), (1,))
    view.states = torch.tensor([[[1.0, 0.02], [-1.0, 0.6], [-0.6, 1.0], [1.0, 0.01]]])
    monkeypatch.setattr(divprune, "products", rounded)
    assert DivPrune().select(view, torch.tensor([1])).tolist() == [[False, True, False, False]]


@every_method
def test_equal_tokens_are_chosen_in_their_order(name):
    view = random_view((6, 3), (1, 1))
    view.states = torch.ones_like(view.states)
    chosen = METHODS[name][0].select(view, torch.tensor([4, 1]))
    assert chosen.tolist() == [[True] * 4 + [False] * 2, [True] + [False] * 5]


@every_method
def test_states_that_are_not_finite_do_not_change_how_many_are_chosen(name):
    view = random_view()
    view.states[:, 3] = torch.nan
    view.states[:, 4, 0] = torch.inf
    view.states[:, 5] = 0
    for budget in BUDGETS:
        chosen = METHODS[name][0].select(view, torch.tensor(budget))
        assert chosen.sum(1).tolist() == list(budget)
        assert not (chosen & ~view.present).any()


@pytest.mark.parametrize("seed", range(30))
def test_the_first_pick_is_the_same_in_chunks(seed):
    view = random_view((16, 16, 16, 16), (1, 1, 1, 1), seed=seed)
    with patch.object(divprune, "CHUNK", 7 * 16):
        agrees(DivPrune(), view, (1, 1, 1, 1), diverse)


@every_method
@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4)])
def test_nothing_is_chosen_from_nothing(name, shape):
    view = random_view()
    view.states, view.present = torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.bool)
    assert METHODS[name][0].select(view, torch.zeros(shape[0], dtype=torch.long)).shape == shape[:2]


@every_method
@pytest.mark.parametrize("kept", [1, 2, 9])
def test_it_counts_its_operations(name, kept):
    counts_itself(METHODS[name][0], random_view((16,), (3,)), kept)


@every_method
def test_it_needs_nothing_and_never_sees_separators(name):
    strategy = resolve(name)
    assert strategy == METHODS[name][0]
    assert strategy.separators == "last"
    assert not needs_of(strategy).before
