"""A model is measured against HalfV's formulas before anything is installed, and refused if it does something else."""

import copy
import functools
import gc
import types
import weakref

import pytest
import torch
from accelerate import cpu_offload
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


# What was verified is remembered


@pytest.fixture
def fresh(mini):
    """A model that nobody has verified, and the number of each of its layers that ran, in their order."""
    model, ran = copy.deepcopy(mini.model()), []
    for index, layer in enumerate(layers(model)):
        layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    return model, ran


def layers(model):
    return model.model.language_model.layers


def test_each_layer_runs_once(fresh):
    model, ran = fresh
    for _ in range(3):
        accelerate(model, PLAN)
    assert ran == [1, 2, 3, 4, 5]
    accelerate(model, halfv_plan(ivr_layer=4, ivr_retention=0.5))
    assert ran == [1, 2, 3, 4, 5]
    accelerate(model, halfv_plan(ivr_layer=1, ivr_retention=0.5))
    assert ran == [1, 2, 3, 4, 5, 0]


def test_use_is_no_change(fresh, mini):
    """Runs on top of each other, prefills, decoding, new values of weights."""
    model, ran = fresh
    inputs = mini.batch([mini.prompt(0)])
    with torch.no_grad(), accelerate(model, PLAN):
        ran.clear()
        with accelerate(model, PLAN):
            assert not ran
            model.generate(**inputs, max_new_tokens=2)
        model(**inputs)
        for parameter in layers(model).parameters():
            parameter.mul_(0.5)
        ran.clear()
        accelerate(model, PLAN)
    accelerate(model, PLAN)
    assert not ran


@pytest.mark.parametrize("attention", ["sdpa", "eager"], indirect=True)
def test_the_device_is_waited_for_once(mini, attention, monkeypatch):
    """However many layers there are; and not at all when all are known."""
    model, waits = copy.deepcopy(mini.model(attention)), []
    for way in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"):
        original = getattr(torch.Tensor, way)
        monkeypatch.setattr(
            torch.Tensor, way, lambda self, *args, _way=original, _of=way: (waits.append(_of), _way(self, *args))[1]
        )
    accelerate(model, PLAN)
    assert waits == ["tolist"]
    accelerate(model, PLAN)
    assert waits == ["tolist"]


def other_class(layer):
    layer.__class__ = type("Other", (type(layer),), {})


def other_forward(layer):
    layer.self_attn.forward = types.MethodType(type(layer.self_attn).forward, layer.self_attn)


def wrapped_forward(layer):
    layer.mlp.forward = functools.partial(layer.mlp.forward)


def hook(layer):
    layer.self_attn.k_proj.register_forward_hook(lambda *_: None)


def other_norm(layer):
    layer.input_layernorm = copy.deepcopy(layer.input_layernorm)


def quantized(layer):
    """Integers for weights, as bitsandbytes has them; the projection's class knows how to use them."""
    linear = layer.self_attn.v_proj
    values = linear.weight.detach()

    class Eight(torch.nn.Linear):
        def forward(self, states):
            return torch.nn.functional.linear(states, values, self.bias)

    linear.__class__ = Eight
    linear.weight = torch.nn.Parameter((values * 16).round().to(torch.int8), requires_grad=False)


def subclassed(layer):
    """Another kind of tensor for a weight, as torchao has them."""

    class Kind(torch.Tensor):
        pass

    layer.self_attn.q_proj.weight = torch.nn.Parameter(layer.self_attn.q_proj.weight.detach().as_subclass(Kind))


def harmless_number(layer):
    layer.self_attn.attention_dropout = 0.25  # only of training


CHANGES = [
    *(other_class, other_forward, wrapped_forward, hook, other_norm, quantized, subclassed, harmless_number),
    lambda layer: layer.to(torch.float64).to(torch.float32),
]


@pytest.mark.parametrize("change", CHANGES[:-1])
def test_a_layer_that_changed_runs_again_alone(fresh, change):
    model, ran = fresh
    accelerate(model, PLAN)
    change(layers(model)[3])
    ran.clear()
    accelerate(model, PLAN)
    accelerate(model, PLAN)
    assert ran == [3]


def test_a_layer_that_came_back_to_what_it_was_is_known(fresh):
    model, ran = fresh
    accelerate(model, PLAN)
    CHANGES[-1](layers(model)[3])
    ran.clear()
    accelerate(model, PLAN)
    assert not ran


def test_what_all_layers_share_concerns_all(fresh, monkeypatch):
    model, ran = fresh
    accelerate(model, PLAN)
    ran.clear()
    with monkeypatch.context() as patch:
        kind = type(layers(model)[0].self_attn)
        original = kind.forward
        patch.setattr(kind, "forward", lambda self, *args, **kwargs: original(self, *args, **kwargs))
        accelerate(model, PLAN)
        assert ran == [1, 2, 3, 4, 5]
    accelerate(model, PLAN)  # what was there before is only remembered until something else is
    ran.clear()
    accelerate(model.to(torch.bfloat16), PLAN)
    assert ran == [1, 2, 3, 4, 5]
    ran.clear()
    model.set_attn_implementation("eager")
    accelerate(model, PLAN)
    assert ran == [1, 2, 3, 4, 5]
    ran.clear()
    cpu_offload(model.model.language_model, torch.device("cpu"))
    accelerate(model, PLAN)
    assert ran == [1, 2, 3, 4, 5]


def test_a_model_that_became_wrong_is_refused(fresh):
    model, _ = fresh
    accelerate(model, PLAN)
    layers(model)[4].self_attn.scaling *= 1.1
    for _ in range(2):  # what was refused is not remembered
        refusal(lambda: accelerate(model, PLAN), "in layer 4 HalfV computes other queries")
    layers(model)[4].self_attn.scaling /= 1.1
    accelerate(model, PLAN)


def test_a_copy_is_another_model(fresh):
    model, ran = fresh
    accelerate(model, PLAN)
    ran.clear()
    accelerate(copy.deepcopy(model), PLAN)
    assert ran == [1, 2, 3, 4, 5]


def test_what_was_verified_does_not_keep_a_model_alive(mini):
    model = copy.deepcopy(mini.model())
    accelerate(model, PLAN)
    gone = weakref.ref(layers(model)[3])
    del model
    gc.collect()
    assert gone() is None
