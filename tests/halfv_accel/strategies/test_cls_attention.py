"""The tower's attention, ranked."""

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import ClsAttention, needs_of, resolve
from tests.halfv_accel.strategies.cases import BUDGETS, agrees, counts_itself
from tests.halfv_accel.strategies.views import random_view


def scores(view):
    heads = view.vision("attention")[0].double().tolist()
    return [sum(column) / len(heads) for column in zip(*heads, strict=True)]


def oracle(view, kept):
    score = scores(view)
    return sorted(range(len(score)), key=lambda token: (-score[token], token))[:kept]


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_oracle(seed, budget, coarse):
    agrees(ClsAttention(), random_view(seed=seed, coarse=coarse), budget, oracle)


def test_it_asks_for_its_layer_only():
    assert needs_of(ClsAttention(vision_layer=5)).vision == (("attention", 5),)
    assert not needs_of(ClsAttention()).before
    assert resolve("cls_attention") == ClsAttention(-2)
    asked = []
    view = random_view()
    view.vision = lambda signal, layer: asked.append((signal, layer)) or view.signals["vision", signal]
    ClsAttention(vision_layer=3).select(view, torch.tensor([1, 1, 0, 1]))
    assert asked == [("attention", 3)]


def test_it_counts_its_operations():
    counts_itself(ClsAttention(), random_view((16,), (3,)), 5)


@pytest.mark.parametrize("layer", [1.0, True, "last", None])
def test_a_layer_is_a_whole_number(layer):
    with pytest.raises(HalfVError, match="vision_layer is"):
        ClsAttention(vision_layer=layer)
