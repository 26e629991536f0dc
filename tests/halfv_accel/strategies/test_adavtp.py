"""AdaVTP: effective rank, the adaptive threshold, the adaptive count."""

import math

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import Adaptive, AdaVTP, needs_of, resolve
from halfv_accel.strategies.shared.effective_rank import effective_rank
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself, tokens
from tests.halfv_accel.strategies.greedy_oracles import distance, rows, top
from tests.halfv_accel.strategies.views import random_view

SETTINGS = [AdaVTP(), AdaVTP(erank_avg=1.0), AdaVTP(erank_avg=1.5, tau_max=0.9), AdaVTP(erank_avg=2, tau_max=2)]


def slow_rank(states):
    """Eq. 3: of all singular values."""
    singular = torch.linalg.svdvals(torch.tensor(states, dtype=torch.float64)).tolist()
    shares = [value / math.fsum(singular) for value in singular]
    return math.exp(-math.fsum(share * math.log(share) for share in shares if share > 0))


def mean_attention(view):
    heads = view.vision("attention")[0].double().tolist()
    return [sum(column) / len(heads) for column in zip(*heads, strict=True)]


def oracle_of(strategy):
    def oracle(view, kept):
        states, attention = rows(view.states), mean_attention(view)
        everything = top(attention, len(states), range(len(states)))
        richness = slow_rank(states) / strategy.erank_avg if states else 1
        picks, removed = [], set()
        for order, token in enumerate(everything, start=1):
            if token in removed or len(picks) == kept:
                continue
            picks.append(token)
            threshold = min(order * richness * 0.01, strategy.tau_max)
            removed |= {other for other in everything if distance(states[token], states[other]) < threshold}
        return picks + top(attention, kept - len(picks), [token for token in everything if token not in picks])

    return oracle


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("strategy", SETTINGS, ids=str)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_oracle(strategy, seed, budget, coarse):
    agrees(strategy, random_view(seed=seed, coarse=coarse), budget, oracle_of(strategy))


def test_a_rich_picture_drops_more_of_what_is_similar():
    """Tokens 0 and 1 have the most attention and are near each other."""
    view = random_view((8,), (1,), seed=3)
    view.states[0, 1] = view.states[0, 0] + 0.05
    view.signals["vision", "attention"] = torch.arange(8.0, 0, -1).expand(1, 2, 8) / 100
    simple, rich = AdaVTP(erank_avg=1000.0), AdaVTP(erank_avg=1.0)
    assert tokens(simple.select(view, torch.tensor([3]))) == [[0, 1, 2]]
    assert tokens(rich.select(view, torch.tensor([3]))) == [[0, 2, 3]]
    assert tokens(AdaVTP(erank_avg=1.0, tau_max=0).select(view, torch.tensor([3]))) == [[0, 1, 2]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [(12, 9, 0, 16), (5, 1), (40, 3)], ids=str)
def test_effective_rank_is_that_of_the_singular_values(seed, counts):
    """With and without more tokens than dimensions."""
    view = random_view(counts, (1,) * len(counts), seed=seed)
    ranks = effective_rank(view.states, view.present)
    assert ranks.dtype == torch.float64
    for row, count in enumerate(counts):
        expected = slow_rank(rows(view.row(row).states)) if count else 1.0
        assert ranks[row].item() == pytest.approx(expected, rel=1e-6)


def test_effective_rank_of_equal_directions_is_their_number():
    states = torch.eye(12)[None].repeat(1, 3, 1)[:, :20]
    present = torch.arange(20)[None] < 12
    assert effective_rank(states, present).item() == pytest.approx(12)
    assert effective_rank(states[:, :1].repeat(1, 9, 1), present[:, :9]).item() == pytest.approx(1, abs=1e-5)


def test_the_count_follows_the_effective_rank_within_the_bounds():
    """B.5: 88 tokens, a fifth less or more."""
    view = random_view((12, 12, 12, 0), (1, 1, 1, 1))
    view.states[0] = view.states[0, :1]  # one direction
    view.states[1] = torch.eye(12)  # twelve
    view.states[2, :] = torch.eye(12)
    view.states[2, 10:] = view.states[2, :2]  # about ten
    least, most = torch.tensor([70, 70, 70, 0]), torch.tensor([106, 106, 106, 0])
    counts = AdaVTP(erank_avg=10).count(view, least, most).tolist()
    rank = slow_rank(rows(view.row(2).states))
    assert counts == [70, 105, math.floor(88 * rank / 10), 0]
    assert AdaVTP(erank_avg=1).count(view, least, most).tolist() == [88, 106, 106, 0]
    assert AdaVTP().count(view, most, most).tolist() == most.tolist()


def test_budgets_are_exact_whatever_the_states():
    view = random_view()
    view.states[:, 3] = torch.nan
    view.states[:, 4, 0] = torch.inf
    view.states[:, 5] = 0
    for budget in BUDGETS:
        chosen = AdaVTP(erank_avg=1).select(view, torch.tensor(budget))
        assert chosen.sum(1).tolist() == list(budget)
        assert not (chosen & ~view.present).any()


@pytest.mark.parametrize("kept", [1, 2, 9])
@pytest.mark.parametrize("count", [8, 16])
def test_it_counts_its_operations(count, kept):
    counts_itself(AdaVTP(), random_view((count,), (3,)), min(count, kept))


def test_it_goes_by_its_name_and_decides_its_count():
    assert resolve("adavtp") == AdaVTP(94.87, 0.25, -2)
    assert isinstance(AdaVTP(), Adaptive)
    assert needs_of(AdaVTP(vision_layer=-1)).vision == (("attention", -1),)
    assert AdaVTP().separators == "last"


@pytest.mark.parametrize(
    "options",
    [
        dict(erank_avg=0.5),
        dict(erank_avg=math.nan),
        dict(erank_avg="llava"),
        dict(tau_max=-0.1),
        dict(tau_max=2.1),
        dict(tau_max=True),
        dict(vision_layer=1.5),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(HalfVError, match=f"{next(iter(options))} is"):
        AdaVTP(**options)
