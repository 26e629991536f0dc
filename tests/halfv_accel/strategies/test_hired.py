"""Budgets of pictures, whole views and crops, and the best tokens of each."""

import math
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.llava_next import modeling_llava_next as next_model

from halfv_accel import HalfVError
from halfv_accel.adapters import family_of
from halfv_accel.strategies import ClsAttention, HiRED, Places, resolve
from halfv_accel.strategies.hired import _regions
from halfv_accel.strategies.shared.dividing import pictures_and_parts
from halfv_accel.strategies.shared.ranking import top_k_mask
from tests.halfv_accel.miniatures import MINIATURES
from tests.halfv_accel.strategies.cases import agrees, counts_itself, tokens
from tests.halfv_accel.strategies.pictures import ROWS, cropped, pictured_view
from tests.halfv_accel.strategies.test_dividing import divided
from tests.halfv_accel.strategies.views import random_view

ACROSS = {"1 x 2 crops, cut": [2], "2 x 3 crops, one row of each": [3], "3 x 3 crops, six cut off": [3]}
ACROSS |= {"2 x 2 crops": [2], "2 x 2 crops, cut at the sides": [2], "3 x 1 crops": [1]}
ACROSS |= {"1 x 2 crops, one row, and a picture": [2, None], "crops and a picture": [3, None, 2]}
SHALLOW = 0


class Layers:
    """Attention differs by layer."""

    def __init__(self, view):
        self.view, self.shallow = view, view.vision("attention").flip(1).flip(2)

    def __getattr__(self, name):
        return getattr(self.view, name)

    def row(self, index):
        one = Layers(self.view.row(index))
        one.shallow = self.shallow[index : index + 1, :, : one.view.present.shape[1]]
        return one

    def vision(self, signal, layer=-2):
        assert signal == "attention"
        return self.shallow if layer == SHALLOW else self.view.vision(signal)


def layered(names, **options):
    view = Layers(pictured_view(names, **options))
    view.shallow = view.shallow * view.present[:, None]
    return view


def mean_heads(attention):
    return attention[0].double().mean(0).tolist()


def best(places, score, quota):
    return sorted(places, key=lambda token: (-score[token], token))[:quota]


def shown_by(tokens, across, size):
    """Which part shows the place (x, y) of the picture, both from 0 to 1: from where crops stand beside each other."""
    at = {}
    for part, row, column in tokens:
        at[(part - 1) // across * size + row, (part - 1) % across * size + column] = part
    low, high = ([f(place[axis] for place in at) for axis in (0, 1)] for f in (min, max))

    def part(*place):
        return at[tuple(least + int(x * (most - least + 1)) for x, least, most in zip(place, low, high, strict=True))]

    return part


def oracle(across, whole):
    def choose(view, kept):
        shallow, deep = mean_heads(view.vision("attention", 0)), mean_heads(view.vision("attention", -2))
        fields = [x[0].tolist() for x in (view.places.picture, view.places.part, view.places.row, view.places.column)]
        pictures = defaultdict(lambda: defaultdict(list))
        for token, (picture, part) in enumerate(zip(*fields[:2], strict=True)):
            pictures[picture][part].append(token)
        many = [sum(map(len, parts.values())) for _, parts in sorted(pictures.items())]
        chosen = []
        for (picture, parts), budget in zip(sorted(pictures.items()), divided(kept, many, many), strict=True):
            crops = sorted(part for part in parts if part)
            sizes = [len(parts[part]) for part in crops]
            share = min(max(math.floor(whole * budget + 1e-9), budget - sum(sizes)), len(parts[0]))
            held = dict.fromkeys(crops, 0.0)
            if crops:
                side = math.isqrt(len(parts[0]))
                tokens = [[field[token] for field in fields[1:]] for part in crops for token in parts[part]]
                shown = shown_by(tokens, across[picture], side)
                for token in parts[0]:
                    place = (Fraction(2 * fields[axis][token] + 1, 2 * side) for axis in (2, 3))
                    held[shown(*place)] += shallow[token]
            chosen += best(parts[0], deep, share)
            quotas = divided(budget - share, list(held.values()), sizes)
            for part, quota in zip(crops, quotas, strict=True):
                chosen += best(parts[part], deep, quota)
        return chosen

    return choose


@pytest.mark.parametrize("whole", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("frames", "nothing")])
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_oracle(name, whole, seed):
    for kept in sorted({0, 1, 2, 7, len(ROWS[name]) // 2, len(ROWS[name]) - 1, len(ROWS[name])}):
        agrees(HiRED(whole), layered([name], seed=seed), [kept], oracle(ACROSS.get(name), whole))


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_ragged_rows_are_chosen_as_each_alone(seed, coarse):
    names = list(ROWS)
    view = layered(names, seed=seed, coarse=coarse)
    budget = [len(ROWS[name]) // 3 for name in names]
    chosen = HiRED().select(view, torch.tensor(budget))
    assert chosen.sum(1).tolist() == budget
    for row, kept in enumerate(budget):
        alone = view.row(row)
        assert tokens(HiRED().select(alone, torch.tensor([kept])))[0] == tokens(chosen)[row]


def test_attention_to_a_region_gives_its_crop_the_budget():
    view = layered(["2 x 2 crops"])
    view.shallow = torch.zeros_like(view.shallow)
    view.shallow[..., [2, 3, 6, 7]] = 1.0  # above, on the right
    chosen = HiRED().select(view, torch.tensor([16]))
    kept_of = [int((chosen & (view.places.part == part)).sum()) for part in range(5)]
    assert kept_of == [8, 0, 8, 0, 0]
    assert [part for _, part, _, _ in cropped(0, 2, 2)][16:24] == [1] * 4 + [2] * 4


def test_one_picture_is_ranked_by_attention():
    view = layered(["one picture"])
    assert torch.equal(HiRED().select(view, torch.tensor([7])), ClsAttention().select(view, torch.tensor([7])))


def test_it_counts_its_operations():
    counts_itself(HiRED(), layered(["2 x 2 crops"]), 20)


@pytest.mark.parametrize("wrong", [dict(whole=1.5), dict(vision_layer=None), dict(region_layer=0.0)])
def test_parameters_are_checked(wrong):
    assert resolve("hired") == HiRED(0.5, -2, 0)
    with pytest.raises(HalfVError, match=f"{next(iter(wrong))} is"):
        HiRED(**wrong)


NEXT = MINIATURES["llava-next-mistral"].build()
PINPOINTS = [[(1, 2), (2, 1)], [(2, 2), (1, 2), (2, 1), (1, 3), (3, 1)], [(3, 3), (2, 3), (2, 2)]]


@pytest.mark.parametrize("layouts", PINPOINTS, ids=str)
@settings(deadline=None, max_examples=40)
@given(size=st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_pictures_of_any_shape_are_found_in_the_models_own_packing(layouts, size):
    """Where crops stand, transformers says; what unpadding leaves of them, the adapter."""
    model = NEXT
    config = model.config
    side = config.vision_config.image_size
    config.image_grid_pinpoints = [[side * down, side * across] for down, across in layouts]
    table = family_of(model)._picture(torch.tensor(size), "default").table
    table = table[table[:, 1] >= 0][:, :3]
    assume(bool((table[:, 0] > 0).any()))  # nothing is left of crops of a picture that is far too narrow
    shape = next_model.get_anyres_image_grid_shape(torch.tensor(size), config.image_grid_pinpoints, side)

    whole = table[table[:, 0] == 0].tolist()
    shown = shown_by(table[table[:, 0] > 0].tolist(), int(shape[1]), math.isqrt(len(whole)))
    fields = [x[None] for x in table.T]
    places = Places(torch.zeros_like(fields[0]), *fields, *[torch.zeros_like(fields[0]).bool()] * 2)
    present = torch.ones_like(places.separator)
    regions = _regions(places, present, *pictures_and_parts(places, present))[0]
    n = 2 * math.isqrt(len(whole))
    expected = [shown(Fraction(2 * row + 1, n), Fraction(2 * column + 1, n)) for _, row, column in whole]
    assert regions[: len(whole)].tolist() == expected


def test_frames_are_no_crops():
    """A video is one picture: the highest attention of all its frames."""
    view = random_view(counts=(12,), texts=(3,))
    view.places = replace(view.places, part=view.places.row, video=view.present)
    attention = view.vision("attention").mean(1)
    assert torch.equal(HiRED().select(view, torch.tensor([5])), top_k_mask(attention, view.present, torch.tensor([5])))
