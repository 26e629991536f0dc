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


def centred(products):
    """Without a constant of the head, which softmax does not see."""
    return products - products.mean(dim=-1, keepdim=True)


def long_way(family, layer, query, states):
    keys = family.keys(layer, states, None)
    return (query @ keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1).mT)[:, :, 0]


def scored(mini, seed=0):
    """A family, a layer of its decoder, a query a head, and states."""
    family = family_of(mini.model())
    layer, draw = family.layers[2], torch.Generator().manual_seed(seed)
    states = torch.randn(2, 9, family.text.config.hidden_size, generator=draw)
    return family, layer, family.queries(layer, states[:, :1], None), states


@torch.no_grad()
def test_a_query_through_the_key_projection_scores_as_all_keys_do(mini):
    family, layer, query, states = scored(mini)
    found, expected = family.unrotated_products(layer, query, states), long_way(family, layer, query, states)
    torch.testing.assert_close(centred(found), centred(expected), rtol=1e-4, atol=1e-4 * float(expected.std()))


@torch.no_grad()
@pytest.mark.parametrize("change", ["hook", "class", "forward"])
def test_a_key_projection_that_does_more_is_called(mini, change):
    """Adapters, quantized weights, offloading and users' hooks do not show in a weight."""
    family, layer, query, states = scored(mini)
    projection, own = layer.self_attn.k_proj, type(layer.self_attn.k_proj)
    before = family.unrotated_products(layer, query, states)
    handle = projection.register_forward_hook(lambda _, args, output: 3 * output) if change == "hook" else None
    if change == "class":
        projection.__class__ = type("Tripled", (own,), {"forward": lambda self, x: 3 * own.forward(self, x)})
    if change == "forward":
        projection.forward = lambda x: 3 * own.forward(projection, x)
    try:
        found, expected = family.unrotated_products(layer, query, states), long_way(family, layer, query, states)
    finally:
        projection.__class__ = own
        vars(projection).pop("forward", None)
        if handle is not None:
            handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    if not hasattr(layer.self_attn, "k_norm"):  # which takes a factor out again
        assert not torch.allclose(centred(found), centred(before), rtol=1e-2)
