"""What is particular about single families, and that every family is tested."""

import pytest
import torch

from halfv_accel import accelerate, halfv_plan
from halfv_accel.adapters import FAMILIES, family_of

from . import oracle
from .miniatures import IMAGE, MINIATURES


def test_every_family_has_a_miniature():
    assert {type(mini.model()).__name__ for mini in MINIATURES.values()} == set(FAMILIES)


def test_the_family_is_found(mini):
    family = family_of(mini.model())
    assert type(family) is FAMILIES[type(mini.model()).__name__]


@torch.no_grad()
def test_attention_is_not_uniform(mini):
    """Or a wrong selection would go unnoticed: the best token gets clearly more than the worst."""
    model, prompt = mini.model("eager"), mini.prompt(0)
    states, rotary, _ = oracle.embed(mini, model, prompt, [])
    visual = [position for position, token in enumerate(prompt["ids"]) if token == IMAGE]
    for used in (None, rotary):
        layer, last = model.model.language_model.layers[0], len(prompt["ids"]) - 1
        score = oracle.scores(layer, states, used, last, visual, False).values()
        assert max(score) > 1.5 * min(score)


@torch.no_grad()
@pytest.mark.parametrize("videos", [0, 1])
def test_deepstack_and_nothing_else_reaches_frozen_tokens(attention, videos):
    """Frozen before layer 1, tokens still get what stands behind layers 1 and 2, and then never change again."""
    mini = MINIATURES["qwen3-vl"]
    model, prompt = mini.model(attention), mini.prompt(0, 1, 6, videos)
    _, _, stacked = oracle.embed(mini, model, prompt, [])
    plan = halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=1)
    with accelerate(model, plan) as run:
        states = model(**mini.batch([prompt]), output_hidden_states=True).hidden_states
    frozen = run.last.kept[0][0]
    assert len(stacked) == 3
    for index in (1, 2, 3):  # hidden_states[i] is what came out of layer i - 1, before DeepStack
        added = stacked[index - 1][0, frozen]
        assert added.abs().max() > 0.1
        assert torch.equal(states[index + 1][0, frozen], states[index][0, frozen] + added)
    assert torch.equal(states[5][0, frozen], states[4][0, frozen])


def test_pictures_of_video_llava_under_either_name():
    """Its processor, and older releases of transformers, call them pixel_values_images."""
    mini = MINIATURES["video-llava"]
    inputs = mini.batch([mini.prompt(0)])
    pixels = inputs.pop(next(name for name in inputs if name.startswith("pixel")))
    family = family_of(mini.model())
    for name in ("pixel_values", "pixel_values_images"):
        assert family.modalities({**inputs, name: pixels}) == {"image"}
    assert family.modalities(inputs) == set()
