"""Even spacing over grids, with holes or without."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_accel.strategies import Places, UniformGrid, needs_of, resolve
from tests.halfv_accel.strategies.cases import agrees, tokens
from tests.halfv_accel.strategies.pictures import ROWS, grid, pictured_view
from tests.halfv_accel.strategies.views import random_view


def oracle(view, kept):
    places = list(
        zip(
            *(x[0].tolist() for x in (view.places.picture, view.places.part, view.places.row, view.places.column)),
            strict=True,
        )
    )
    total = len(places)
    bands = {}
    for token, (picture, part, row, _) in enumerate(places):
        rows = [place[2] for place in places if place[:2] == (picture, part)]
        height = max(rows) - min(rows) + 1
        many = max([1, *(k for k in range(1, height + 1) if (2 * k - 1) ** 2 * total <= 4 * height**2 * kept)])
        bands.setdefault((picture, part, (row - min(rows)) * many // height), []).append(token)
    chosen, seen = [], 0
    for _, band in sorted(bands.items()):
        first, last = ((2 * x * kept + total) // (2 * total) for x in (seen, seen + len(band)))
        seen += len(band)
        band.sort(key=lambda token: (places[token][3], places[token][2]))
        for stretch in range(last - first):
            members = [token for i, token in enumerate(band) if i * (last - first) // len(band) == stretch]
            ends = [[f(places[token][axis] for token in members) for f in (min, max)] for axis in (2, 3)]
            off = {t: sum(abs(2 * places[t][axis] - sum(ends[axis - 2])) for axis in (2, 3)) for t in members}
            chosen.append(min(members, key=lambda token: (off[token], token)))
    return chosen


@pytest.mark.parametrize("name", ROWS)
def test_it_equals_the_oracle(name):
    for kept in range(len(ROWS[name]) + 1):
        agrees(UniformGrid(), pictured_view([name]), [kept], oracle)


def test_ragged_rows_are_chosen_as_each_alone():
    for share in (0.1, 0.3, 0.7, 1.0):
        agrees(UniformGrid(), pictured_view(list(ROWS)), [int(share * len(row)) for row in ROWS.values()], oracle)


@st.composite
def holed(draw):
    """A grid of which only some tokens are left, as after another stage."""
    cells = grid(
        0, 0, draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(0, 2)), draw(st.integers(0, 2))
    )
    cells += grid(0, 1, draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    left = [cell for cell in cells if draw(st.booleans())] or cells
    return left, draw(st.integers(0, len(left)))


@settings(deadline=None)
@given(holed())
def test_grids_with_holes_too(case):
    places, kept = case
    view = random_view((len(places),), (2,))
    view.places = Places(*torch.tensor(places).T[:, None], *[torch.zeros_like(view.present)] * 2)
    agrees(UniformGrid(), view, [kept], oracle)


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 6, 8, 12, 24])
def test_where_numbers_fit_it_is_a_lattice(cells):
    """24 x 24 tokens, of which one stays of each cell."""
    view = random_view((576,), (2,), columns=24)
    chosen = tokens(UniformGrid().select(view, torch.tensor([cells**2])))[0]
    step = 24 // cells
    lines = range((step - 1) // 2, 24, step)
    assert chosen == [24 * row + column for row, column in product(lines, lines)]


@pytest.mark.parametrize("kept", [32, 64, 100, 128, 192, 288])
def test_no_place_is_far_from_a_kept_token(kept):
    view = random_view((576,), (2,), columns=24)
    chosen = torch.tensor(tokens(UniformGrid().select(view, torch.tensor([kept])))[0])
    at = torch.stack([chosen // 24, chosen % 24], dim=1).double()
    everywhere = torch.cartesian_prod(torch.arange(24), torch.arange(24)).double()
    assert torch.cdist(everywhere, at).min(1).values.max() <= 1.5 * math.sqrt(576 / kept)


def test_frames_share_the_budget():
    chosen = UniformGrid().select(pictured_view(["frames"]), torch.tensor([8]))
    assert chosen.view(4, 9).sum(1).tolist() == [2, 2, 2, 2]
    chosen = UniformGrid().select(pictured_view(["frames"]), torch.tensor([2]))
    assert chosen.view(4, 9).sum(1).tolist() in ([1, 0, 1, 0], [0, 1, 0, 1])


def test_it_costs_nothing_and_asks_for_structure_only():
    assert resolve("uniform_grid") == UniformGrid()
    assert needs_of(UniformGrid()).structure and not needs_of(UniformGrid()).vision
    assert UniformGrid().flops(None) == 0
