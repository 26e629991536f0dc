"""Information inflow against counting the sources one by one in an eager model's maps."""

import math
from collections import Counter
from statistics import mean, median

import pytest
import torch

from halfv_accel import HalfVError
from halfv_probe.measures.inflow import HUBS, InformationInflow, information_inflow
from tests.halfv_accel.miniatures import IMAGE, LAYERS, MINIATURES

from .test_attention import batches, kinds, maps

FIELDS = tuple(InformationInflow.__dataclass_fields__)


def slow_inflow(weights, visual, text, exclude, near):
    """The measures of one layer of one prompt, in the order of the fields."""
    pairs = []
    for i in visual:
        candidates = [j for j in sorted(visual + text) if j <= i]
        if "self" in exclude:
            candidates = [j for j in candidates if j != i]
        if "first" in exclude:
            candidates = [j for j in candidates if j != min(visual + text)]
        if "text" in exclude:
            candidates = [j for j in candidates if j in visual]
        if candidates:
            pairs.append((i, max(candidates, key=lambda j: weights[i][j])))
    frequency = [count / len(pairs) for _, count in Counter(j for _, j in pairs).most_common()]
    return [
        mean(j in visual for _, j in pairs),
        mean(j in visual and i - j <= near for i, j in pairs),
        median(i - j for i, j in pairs),
        len(frequency),
        frequency[0],
        sum(frequency[: math.ceil(HUBS * len(visual))]),
        -sum(p * math.log(p) for p in frequency),
    ]


@pytest.mark.parametrize("exclude", [(), {"self"}, {"first"}, {"self", "text"}], ids=["none", "self", "first", "both"])
def test_inflow_is_counted_from_the_models_own_maps(mini, exclude):
    for inputs in batches(mini):
        measured = information_inflow(mini.model(), inputs, exclude, near=3)
        for layer, weights in enumerate(maps(mini, inputs).tolist()):
            prompts = [
                slow_inflow(rows, visual, text, exclude, near=3)
                for rows, (visual, text) in zip(weights, kinds(mini, inputs), strict=True)
            ]
            expected = [mean(column) for column in zip(*prompts, strict=True)]
            assert [getattr(measured, field)[layer].item() for field in FIELDS] == pytest.approx(expected, abs=1e-9)


def test_a_batch_is_the_mean_of_its_prompts(mini):
    model, prompts = mini.model(), [mini.prompt(0), mini.prompt(1, 2)]
    together = information_inflow(model, mini.batch(prompts))
    alone = [information_inflow(model, mini.batch([prompt])) for prompt in prompts]
    for field in FIELDS:
        torch.testing.assert_close(
            getattr(together, field), torch.stack([getattr(one, field) for one in alone]).mean(dim=0)
        )


def test_the_model_comes_out_as_it_went_in(mini, untouched, breaking):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with untouched(model):
        information_inflow(model, inputs)
    with breaking(model), untouched(model), pytest.raises(RuntimeError, match="broken"):
        information_inflow(model, inputs)


def test_what_cannot_be_measured_is_refused():
    mini = MINIATURES["qwen2.5-vl"]
    model, prompt = mini.model(), mini.prompt(0)
    with pytest.raises(HalfVError, match=r"'last'.*self, first, text"):
        information_inflow(model, mini.batch([prompt]), exclude={"last"})
    one_token = {"image_grid_thw": torch.tensor([[1, 2, 2]]), "pixel_values": prompt["pixel_values"][:4]}
    inputs = mini.batch([{**prompt, **one_token, "ids": [5, 6, IMAGE, 7, 8]}])
    assert information_inflow(model, inputs).top.tolist() == [1.0] * LAYERS
    with pytest.raises(HalfVError, match="no visual token of a prompt has a source left"):
        information_inflow(model, inputs, exclude={"self", "text"})
