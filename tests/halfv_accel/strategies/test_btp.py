"""Balanced Token Pruning against its description."""

import math
from dataclasses import replace

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import BTP, Needs, Places, resolve
from halfv_accel.strategies.btp import spread
from tests.halfv_accel.strategies.inside import holds, same_flops, shares, top
from tests.halfv_accel.strategies.views import random_view

STAGES = [BTP(), BTP(0, 0.9, 1.5), BTP(0, 1, 1.2), BTP(0, 1, 1), BTP(0.4, 0.6, 2.5), BTP(0.5, 0, 1), BTP(0, 0, 1)]


def grid_oracle(where, count):
    """Farthest points among (picture, part, row, column), separators None: chosen indices in order."""
    chosen = []
    candidates = [i for i, place in enumerate(where) if place is not None]
    while len(chosen) < min(count, len(candidates)):

        def reach(i):
            far = [
                abs(where[i][2] - where[j][2]) + abs(where[i][3] - where[j][3])
                if where[i][:2] == where[j][:2]
                else math.inf
                for j in chosen
            ]
            return min(far, default=math.inf)

        left = [i for i in candidates if i not in chosen]
        chosen.append(left[top([reach(i) for i in left], 1)[0]])
    return chosen


def places_of(view, row, tokens):
    values = [getattr(view.places, name)[row, :tokens].tolist() for name in ("picture", "part", "row", "column")]
    separator = view.places.separator[row, :tokens].tolist()
    return [None if hidden else place for place, hidden in zip(zip(*values, strict=True), separator, strict=True)]


def attention_oracle(scores, taken, count, widen, budget):
    others = [i for i in range(len(scores)) if i not in taken]
    pool = [others[i] for i in top([scores[i] for i in others], min(len(others), math.floor(count * widen + 1e-9)))]
    early, late = [i for i in pool if i < budget], [i for i in pool if i >= budget]
    return (early + late)[:count]


def oracle(view, row, budget, stage):
    tokens = int(view.present[row].sum())
    spatial, attention = (math.floor(budget * share + 1e-9) for share in (stage.spatial, stage.attention))
    chosen = grid_oracle(places_of(view, row, tokens), spatial)
    if stage.attention > 0:
        last = int(view.text_present[row].sum()) - 1
        scores = view.signals["text attention"][row, :, last, :tokens].double().sum(0).tolist()
        chosen += attention_oracle(scores, chosen, spatial + attention - len(chosen), stage.widen, budget)
    states = torch.nn.functional.normalize(view.states[row, :tokens].double(), dim=-1)
    while len(chosen) < budget:
        left = [i for i in range(tokens) if i not in chosen]
        near = [-max((float(states[i] @ states[j]) for j in chosen), default=-9.0) for i in left]
        chosen.append(left[top(near, 1)[0]])
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [0, 0.3, 0.5, 0.8, 1])
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_each_part_takes_its_share(seed, ratio, stage):
    view = random_view(seed=seed)
    budget = shares(view, ratio)
    chosen = holds(stage, view, budget)
    for row, kept in enumerate(budget.tolist()):
        assert chosen[row].nonzero()[:, 0].tolist() == oracle(view, row, kept, stage)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_separators_are_no_spatial_seeds(seed, stage):
    view = random_view(seed=seed)
    hidden = view.present & (torch.arange(view.present.shape[1]) % 3 == 2)
    places = {
        name: value.masked_fill(hidden, -1) for name, value in vars(view.places).items() if name in ("row", "column")
    }
    view.places = replace(view.places, **places, separator=hidden)
    budget = shares(view, 0.8)
    chosen = holds(stage, view, budget)
    for row, kept in enumerate(budget.tolist()):
        assert chosen[row].nonzero()[:, 0].tolist() == oracle(view, row, kept, stage)
    assert not (spread(view.places, view.present, view.present.sum(1)) & hidden).any()


def test_attention_alone_breaks_ties_to_the_earlier():
    view = random_view(seed=1, coarse=True)
    budget = shares(view, 0.6)
    chosen = holds(BTP(0, 1, 1), view, budget)
    for row, kept in enumerate(budget.tolist()):
        assert chosen[row].nonzero()[:, 0].tolist() == oracle(view, row, kept, BTP(0, 1, 1))


def grid(*parts):
    """One row of parts, each (picture, part, rows, columns)."""
    cells = [(n, part, r, c) for n, part, rows, columns in parts for r in range(rows) for c in range(columns)]
    columns = [torch.tensor([values]) for values in zip(*cells, strict=True)]
    return Places(*columns, *[torch.zeros_like(columns[0]).bool()] * 2), cells


@pytest.mark.parametrize(
    "parts", [[(0, 0, 6, 6)], [(0, 0, 3, 7), (0, 1, 3, 7)], [(0, 0, 4, 4), (1, 0, 2, 9), (1, 1, 5, 1)]]
)
@pytest.mark.parametrize("count", [0, 1, 2, 5, 9, 30])
def test_spatial_seeds_are_spread(parts, count):
    places, cells = grid(*parts)
    chosen = spread(places, torch.ones_like(places.separator), torch.tensor([count]))
    assert chosen[0].nonzero()[:, 0].tolist() == sorted(grid_oracle(cells, count))


def test_every_part_gets_a_seed_before_any_gets_two():
    places, cells = grid((0, 0, 4, 4), (0, 1, 2, 2), (1, 0, 3, 3))
    chosen = spread(places, torch.ones_like(places.separator), torch.tensor([3]))
    assert {cells[i][:2] for i in chosen[0].nonzero()[:, 0].tolist()} == {(0, 0), (0, 1), (1, 0)}


@pytest.mark.parametrize("kept", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_it_states_its_operations(kept, stage):
    same_flops(stage, random_view(counts=(12,), texts=(5,)), kept)


def test_it_counts_something():
    assert same_flops(BTP(), random_view(counts=(12,), texts=(5,)), 6) > 0


def test_names_and_needs():
    assert resolve("btp") == BTP(spatial=0.5, attention=0.3, widen=3.7, scored_by="previous")
    assert BTP().needs == Needs(before=True, structure=True)
    assert BTP(0, 1, scored_by="own").needs == Needs()
    assert BTP(0.5, 0).needs == Needs(structure=True)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"spatial": -0.1}, "spatial is -0.1"),
        ({"attention": 1.5}, "attention is 1.5"),
        ({"attention": "all"}, "attention is 'all'"),
        ({"spatial": 0.6, "attention": 0.6}, "together"),
        ({"widen": 0.9}, "widen is 0.9"),
        ({"widen": float("nan")}, "widen is nan"),
        ({"scored_by": "next"}, "scored_by is 'next'"),
    ],
)
def test_parameters_are_checked(fields, says):
    with pytest.raises(HalfVError, match=says):
        BTP(**fields)
