"""Layer redundancy and lifecycle against slow definitions, on a random model in memory."""

import pytest
import torch
import torch.nn.functional as F

from halfv_accel.prompts import chat_inputs
from halfv_data import scenes
from halfv_probe.capture import watch_boundaries
from halfv_probe.lifecycle import measure_lifecycle
from halfv_probe.redundancy import layer_redundancy
from halfv_probe.spectra import spectrum
from tiny_vlm.llava import TinyLlava
from tiny_vlm.qwen import TinyQwen


@pytest.fixture(scope="module", params=[TinyQwen, TinyLlava], ids=["qwen2.5-vl", "llava"])
def case(request):
    """A model, one prompt for it, and the mask of its visual tokens."""
    torch.manual_seed(0)
    family = request.param()
    model = family.build().eval()
    sample = next(iter(scenes(1, seed=0)))
    inputs = chat_inputs(family.processor(), [sample.image], sample.question)
    image = model.config.image_token_id
    return model, inputs, inputs["input_ids"][0] == image


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@torch.no_grad()
def terminated_logits(model, inputs, visual, stop):
    """Slow oracle: the decoder run by hand, submodule by submodule; at layer ``stop`` visual rows get no update."""
    lm = model.model.language_model
    grabbed = {}

    def grab(_module, args, kwargs):
        grabbed.update(kwargs, hidden_states=args[0] if args else kwargs["hidden_states"])

    handle = lm.layers[0].register_forward_pre_hook(grab, with_kwargs=True)
    model(**inputs, use_cache=False)
    handle.remove()
    states, rest = grabbed.pop("hidden_states"), grabbed
    for index, layer in enumerate(lm.layers):
        update = torch.where(visual[:, None], 0.0, 1.0) if index == stop else 1.0
        attended = layer.self_attn(hidden_states=layer.input_layernorm(states), **rest)[0]
        middle = states + update * attended
        states = middle + update * layer.mlp(layer.post_attention_layernorm(middle))
    return model.lm_head(lm.norm(states))[0, -1]


def test_redundancy_is_the_kl_of_the_terminated_model(case):
    model, inputs, visual = case
    untouched = F.log_softmax(terminated_logits(model, inputs, visual, stop=None).double(), -1)
    measured = layer_redundancy(model, inputs)
    for layer in range(len(model.model.language_model.layers)):
        changed = F.log_softmax(terminated_logits(model, inputs, visual, stop=layer).double(), -1)
        assert measured[layer].item() == pytest.approx((untouched.exp() * (untouched - changed)).sum().item(), abs=1e-6)


def test_terminating_text_matters_and_leaves_no_hook(case):
    model, inputs, _ = case
    before = hook_count(model)
    assert layer_redundancy(model, inputs, tokens="text").max() > 0
    assert hook_count(model) == before


def test_redundancy_needs_a_picture(case):
    model, inputs, visual = case
    with pytest.raises(ValueError, match="picture"):
        layer_redundancy(model, {"input_ids": inputs["input_ids"][:, ~visual]})


def test_boundaries_are_the_hidden_states_of_the_model(case):
    model, inputs, _ = case
    seen = {}
    with torch.no_grad(), watch_boundaries(model.model.language_model.layers, seen.__setitem__):
        reported = model(**inputs, output_hidden_states=True).hidden_states
    assert len(seen) == len(reported)
    for index, states in enumerate(reported[:-1]):  # the last one that the model reports is normalised
        torch.testing.assert_close(seen[index], states, rtol=0, atol=0)
    torch.testing.assert_close(model.model.language_model.norm(seen[len(seen) - 1]), reported[-1])


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
def test_lifecycle_measures_every_boundary(case, fidelity):
    model, inputs, visual = case
    before = hook_count(model)
    found = measure_lifecycle(model, [inputs], fidelity)
    layers = len(model.model.language_model.layers)
    assert {group: curve.shape for group, curve in found.entropy.items()} == dict.fromkeys(
        ("visual", "text", "all"), (layers + 1,)
    )
    assert hook_count(model) == before
    with torch.no_grad():
        last = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
    if fidelity == "reference":  # final norm applied, centred, k = 50: the last boundary is the model's own last state
        values = spectrum(last[visual], center=True)[:50]
        p = values / values.sum()
        assert found.entropy["visual"][-1] == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)


def test_lifecycle_needs_a_prompt(case):
    with pytest.raises(ValueError, match="at least one"):
        measure_lifecycle(case[0], [])
