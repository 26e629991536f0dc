"""A model is measured against HalfV's formulas before anything is installed, and refused if it does something else."""

import copy

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    SmolLM3Config,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from halfv_accel import accelerate, halfv_plan
from halfv_accel.adapters import FAMILIES, check_projections, could_fit, family_of

from . import oracle
from .miniatures import IMAGE, WIDTH, MiniLlava, widen
from .miniatures.base import text_options
from .miniatures.llavas import clip
from .refusing import refusal

PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.4, anchor_ratio=0.3, ssr_mode="freeze", ssr_layer=4)


def test_every_family_passes_in_every_precision(mini, attention):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check_projections(family_of(copy.deepcopy(mini.model(attention)).to(dtype)))


OFF = {  # the method, and what a hundredth too much makes of its result
    "queries": ("queries", lambda queries: queries * 1.01),
    "keys": ("keys_and_values", lambda both: (both[0] * 1.01, both[1])),
    "values": ("keys_and_values", lambda both: (both[0], both[1] * 1.01)),
}


@pytest.mark.parametrize("part", OFF)
def test_a_formula_that_is_off_by_a_hundredth_is_refused(mini, part, monkeypatch):
    model, family = mini.model(), FAMILIES[type(mini.model()).__name__]
    method, wrong = OFF[part]
    formula = getattr(family, method)
    monkeypatch.setattr(family, method, lambda *arguments: wrong(formula(*arguments)))
    refusal(lambda: accelerate(model, PLAN), f"computes other {part} than its attention.*CONTRIBUTING")


def test_another_scale_of_attention_is_refused(mini):
    model = copy.deepcopy(mini.model())
    model.model.language_model.layers[4].self_attn.scaling *= 1.1
    refusal(lambda: accelerate(model, PLAN), "other queries")


def test_a_layer_that_returns_something_else_is_refused(mini):
    model = copy.deepcopy(mini.model())
    layer = model.model.language_model.layers[2]
    layer.__class__ = type("Other", (type(layer),), {"forward": lambda self, *_, **__: (1, 2)})
    refusal(lambda: accelerate(model, PLAN), "returns a tuple")


def test_layers_that_take_more_or_have_less_are_refused(mini):
    model = copy.deepcopy(mini.model())
    layer = model.model.language_model.layers[2]
    layer.__class__ = type("Other", (type(layer),), {"forward": lambda self, hidden_states, kinds, **_: hidden_states})
    refusal(lambda: accelerate(model, PLAN), "layer 2 .*takes kinds")
    model = copy.deepcopy(mini.model())
    del model.model.language_model.layers[3].self_attn
    refusal(lambda: accelerate(model, PLAN), "layer 3 .*self_attn")


def test_a_language_model_without_positions_in_every_fourth_layer_is_refused():
    class Mini(MiniLlava):
        def build(self):
            text = SmolLM3Config(**text_options(2), no_rope_layers=[1, 1, 1, 0, 1, 1])
            return LlavaForConditionalGeneration(
                LlavaConfig(vision_config=clip(20), text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
            )

    refusal(lambda: accelerate(Mini().model(), PLAN), "layer 3 HalfV computes other keys")


def test_a_structure_that_does_not_fit_is_refused():
    vision = SiglipVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = Gemma3TextConfig(**text_options(2), head_dim=8, layer_types=["full_attention"] * 6)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)).eval()
    assert could_fit(model)  # it has all the parts, and its layers want more than ours
    refusal(lambda: accelerate(model, PLAN), "Gemma3ForConditionalGeneration with Gemma3Attention is not supported")


class LlavaWithQwen(MiniLlava):
    """A language model that no LLaVA file names: grouped queries, biases."""

    name = "llava with qwen2"

    def build(self):
        text = Qwen2Config(**text_options(2))
        config = LlavaConfig(vision_config=clip(20), text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
        return LlavaForConditionalGeneration(config)


def test_a_language_model_that_was_never_seen_equals_the_oracle(attention):
    mini = LlavaWithQwen()
    prompt = mini.prompt(0)
    logits, _, _, kept = oracle.run(mini, prompt, dict(ivr=(2, 10, 3), freeze=4))
    with torch.no_grad(), accelerate(mini.model(attention), PLAN) as run:
        mine = mini.model(attention)(**mini.batch([prompt])).logits
    assert [stage[0].nonzero()[:, 0].tolist() for stage in run.last.kept] == kept
    torch.testing.assert_close(mine[0, -1], logits[-1], rtol=0, atol=1e-4)


def test_a_class_without_an_adapter_works(attention):
    """Keeping everything changes nothing, and pruning prunes."""
    config = VipLlavaConfig(
        vision_config=clip(20), text_config=LlavaWithQwen().model().config.text_config, image_token_index=IMAGE
    )
    config.vision_feature_layers = [-1]
    model = widen(VipLlavaForConditionalGeneration(config))
    model.set_attn_implementation(attention)
    assert type(model).__name__ not in FAMILIES
    assert model.config.text_config.hidden_size == WIDTH
    inputs = MiniLlava().batch([MiniLlava().prompt(0)])
    everything = halfv_plan(ivr_layer=2, ivr_retention=1.0)
    with torch.no_grad():
        plain = model(**inputs).logits
        with accelerate(model, everything):
            assert torch.equal(model(**inputs).logits, plain)
        with accelerate(model, PLAN) as run:
            assert not torch.equal(model(**inputs).logits, plain)
    assert [stage.after for stage in run.last.stages] == [[10], [0]]
