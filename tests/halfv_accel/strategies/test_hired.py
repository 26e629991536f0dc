"""Budgets of pictures, whole views and crops, and the best tokens of each."""

import math
from collections import defaultdict

import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.strategies import ClsAttention, HiRED, resolve
from tests.halfv_accel.strategies.cases import agrees, counts_itself, tokens
from tests.halfv_accel.strategies.pictures import ROWS, cropped, pictured_view
from tests.halfv_accel.strategies.test_dividing import divided

LAYOUT = {"2 x 2 crops": [(2, 2)], "1 x 2 crops, cut": [(1, 2)], "3 x 1 crops": [(3, 1)]}
LAYOUT["crops and a picture"] = [(1, 3), None, (2, 2)]
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


def oracle(layouts, whole):
    def choose(view, kept):
        shallow, deep = mean_heads(view.vision("attention", 0)), mean_heads(view.vision("attention", -2))
        pictures = defaultdict(lambda: defaultdict(list))
        fields = [x[0].tolist() for x in (view.places.picture, view.places.part, view.places.row, view.places.column)]
        for token, (picture, part, _, _) in enumerate(zip(*fields, strict=True)):
            pictures[picture][part].append(token)
        many = [sum(map(len, parts.values())) for _, parts in sorted(pictures.items())]
        chosen = []
        for (picture, parts), budget in zip(sorted(pictures.items()), divided(kept, many, many), strict=True):
            crops = [parts[part] for part in sorted(parts) if part]
            sizes = [len(crop) for crop in crops]
            share = min(max(math.floor(whole * budget + 1e-9), budget - sum(sizes)), len(parts[0]))
            held = [0.0] * len(crops)
            if crops:
                down, across = layouts[picture]
                rows, columns = (1 + max(fields[i][token] for token in parts[0]) for i in (2, 3))
                for token in parts[0]:
                    region = fields[2][token] * down // rows * across + fields[3][token] * across // columns
                    held[region] += shallow[token]
            chosen += best(parts[0], deep, share)
            for crop, quota in zip(crops, divided(budget - share, held, sizes), strict=True):
                chosen += best(crop, deep, quota)
        return chosen

    return choose


@pytest.mark.parametrize("whole", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("frames", "nothing")])
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_oracle(name, whole, seed):
    for kept in sorted({0, 1, 2, 7, len(ROWS[name]) // 2, len(ROWS[name]) - 1, len(ROWS[name])}):
        agrees(HiRED(whole), layered([name], seed=seed), [kept], oracle(LAYOUT.get(name), whole))


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
