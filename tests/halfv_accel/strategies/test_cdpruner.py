"""CDPruner: the conditional determinant, greedily."""

import math

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import CDPruner, needs_of, resolve
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself, tokens
from tests.halfv_accel.strategies.greedy_oracles import distance, largest_residuals, rows, top, unit
from tests.halfv_accel.strategies.views import random_view

SETTINGS = [CDPruner(), CDPruner(negative=True), CDPruner(theta=0), CDPruner(theta=0.5), CDPruner(theta=0.999)]


def relevances(strategy, view):
    sign = -1 if strategy.negative else 1
    text = rows(view.text_states)
    means = [sign * sum(1 - distance(state, word) for word in text) / len(text) for state in rows(view.states)]
    low, high = min(means), max(means)
    return [1e-6 + (1 - 1e-6) * (mean - low) / (high - low) if high > low else 1.0 for mean in means]


def oracle_of(strategy):
    def oracle(view, kept):
        if not kept:
            return []
        relevance = relevances(strategy, view)
        if strategy.theta is None:
            weights = relevance
        else:
            alpha = strategy.theta / (2 * (1 - strategy.theta))
            weights = [math.exp(alpha * (r - 1)) for r in relevance]
        vectors = [[w * x for x in unit(state)] for w, state in zip(weights, rows(view.states), strict=True)]
        picks = largest_residuals(vectors, kept, range(len(vectors)))
        rest = [token for token in range(len(vectors)) if token not in picks]
        return picks + top(relevance, kept - len(picks), rest)

    return oracle


@pytest.mark.parametrize("strategy", SETTINGS[:-1], ids=str)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_oracle(strategy, seed, budget):
    """With 16 tokens in 12 dimensions, the last budgets are filled by relevance."""
    agrees(strategy, random_view(seed=seed), budget, oracle_of(strategy))


def test_it_maximises_the_determinant_step_by_step():
    view = random_view((16,), (3,), seed=5)
    relevance = torch.tensor(relevances(CDPruner(), view), dtype=torch.float64)
    states = torch.nn.functional.normalize(view.states[0].double(), dim=-1)
    kernel = relevance[:, None] * (states @ states.T) * relevance
    chosen = []
    for kept in range(1, 9):
        values = {
            token: torch.linalg.det(kernel[[*chosen, token]][:, [*chosen, token]])
            for token in range(16)
            if token not in chosen
        }
        chosen.append(max(values, key=values.get))
        assert tokens(CDPruner().select(view, torch.tensor([kept])))[0] == sorted(chosen)


def test_duplicates_are_kept_last():
    view = random_view((9,), (3,), seed=2)
    view.states[0, 5:] = view.states[0, :4] * 3
    chosen = tokens(CDPruner(theta=0).select(view, torch.tensor([5])))[0]
    assert chosen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("strategy", SETTINGS, ids=str)
def test_budgets_are_exact_whatever_the_states(strategy):
    view = random_view(texts=(5, 0, 4, 6))  # no text: all tokens are equally relevant
    view.states[:, 3] = torch.nan
    view.states[:, 4, 0] = torch.inf
    view.states[:, 5] = 0
    view.text_states[3, 0] = torch.nan
    for budget in BUDGETS:
        chosen = strategy.select(view, torch.tensor(budget))
        assert chosen.sum(1).tolist() == list(budget)
        assert not (chosen & ~view.present).any()


def test_half_precision_states_are_compared_in_full():
    view = random_view(seed=3)
    rounded = view.states.bfloat16()
    view.states = rounded.float()
    wanted = CDPruner().select(view, torch.tensor([4, 4, 0, 4]))
    view.states = rounded
    assert torch.equal(CDPruner().select(view, torch.tensor([4, 4, 0, 4])), wanted)


@pytest.mark.parametrize("kept", [1, 2, 7])
def test_it_counts_its_operations(kept):
    counts_itself(CDPruner(), random_view((16,), (3,)), kept)


def test_it_needs_nothing_beside_the_stage():
    assert resolve("cdpruner") == CDPruner(theta=None, negative=False)
    assert not needs_of(CDPruner()).before
    assert CDPruner().separators == "last"


@pytest.mark.parametrize(
    "options", [dict(theta=1), dict(theta=-0.1), dict(theta="half"), dict(theta=True), dict(negative=1)]
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(HalfVError, match=f"{next(iter(options))} is"):
        CDPruner(**options)
