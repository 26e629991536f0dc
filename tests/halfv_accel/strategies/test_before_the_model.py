"""Laws of all strategies that go by the vision tower or by places alone."""

import pytest
import torch

from halfv_accel.strategies import STRATEGIES, resolve
from tests.halfv_accel.strategies.cases import mapped, outcome
from tests.halfv_accel.strategies.pictures import ROWS, pictured_view
from tests.halfv_accel.strategies.views import random_view

NAMES = """
    adavtp cdpruner cls_attention divprune erank_bat erank_divprune erank_vispruner farthest_points hired holov
    infoprune prumerge uniform_grid visionzip vispruner
""".split()
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA"))


@pytest.fixture(params=NAMES)
def strategy(request):
    return resolve(request.param)


def test_all_of_them_are_registered_and_never_see_separators(strategy):
    assert set(NAMES) <= set(STRATEGIES)
    assert strategy.separators == "last"
    assert not strategy.needs.before and not strategy.needs.prompt


def test_without_any_token_nothing_is_chosen(strategy):
    chosen, states = outcome(strategy, random_view((0, 0), (2, 3)), [0, 0])
    assert chosen.shape == (2, 0) and states.shape[:2] == (2, 0)


def test_numbers_that_are_not_finite_break_no_budget(strategy):
    view = random_view(seed=1)
    broken = torch.tensor([torch.nan, torch.inf, -torch.inf])
    view.states[:, 1:4] = broken[None, :, None]
    for name, value in view.signals.items():
        if name[0] == "vision":
            (value if value.ndim == 3 and name[1] == "features" else value.movedim(2, 1))[:, 1:4] = broken.view(
                1, 3, *[1] * (value.ndim - 2)
            )
    for budget in ([4, 4, 0, 4], [11, 1, 0, 15], [12, 9, 0, 16]):
        chosen, _ = outcome(strategy, view, budget)
        assert chosen.sum(1).tolist() == budget and not (chosen & ~view.present).any()


def test_half_precision_is_chosen_by(strategy):
    view = mapped(random_view(seed=3), lambda x: x.bfloat16() if x.is_floating_point() else x)
    exact = mapped(random_view(seed=3), lambda x: x.bfloat16().float() if x.is_floating_point() else x)
    chosen, states = outcome(strategy, view, [5, 4, 0, 7])
    assert states.dtype == torch.bfloat16
    assert torch.equal(chosen, outcome(strategy, exact, [5, 4, 0, 7])[0])


@pytest.mark.parametrize("device", [CUDA])
def test_a_gpu_chooses_the_same(strategy, device):
    names = list(ROWS)
    budget = [len(ROWS[name]) // 3 for name in names]
    chosen, states = outcome(strategy, pictured_view(names, seed=4), budget)
    there, merged = outcome(strategy, mapped(pictured_view(names, seed=4), lambda x: x.to(device)), budget)
    assert there.is_cuda and torch.equal(there.cpu(), chosen)
    torch.testing.assert_close(merged.cpu(), states, rtol=1e-4, atol=1e-5)
