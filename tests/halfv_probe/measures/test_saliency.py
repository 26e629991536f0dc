"""Saliency flow against Eq. 4-5 written out: gradients of the whole eager model by autograd, then loops over tokens."""

import copy

import pytest
import torch

from halfv_accel import HalfVError
from halfv_probe.measures.saliency import saliency_flow
from tests.halfv_accel.miniatures import MINIATURES

from .test_attention import kinds


def slow_flow(mini, prompt, loss, gradient):
    """S_vt and S_vv of each layer, and the loss, for one prompt."""
    model, inputs = copy.deepcopy(mini.model("eager")), mini.batch([prompt])
    layers, outputs = model.model.language_model.layers, []
    for layer in layers:
        layer.register_forward_hook(lambda _module, _args, output: (output.retain_grad(), outputs.append(output))[0])
    ((visual, text),) = kinds(mini, inputs)
    labels = torch.full_like(inputs["input_ids"], -100)
    for i in text:
        if i > min(visual):
            labels[0, i] = inputs["input_ids"][0, i]
    out = model(**inputs, labels=labels, output_attentions=True)
    value = -torch.log_softmax(out.logits[0, -1].double(), 0).max() if loss == "next" else out.loss
    value.backward()
    flows = []
    for index, layer in enumerate(layers):
        grads = outputs[index if gradient == "layer" else -1].grad[0].double()
        weights = out.attentions[index][0].detach().double().mean(dim=0).tolist()
        projected = [float((layer.self_attn.v_proj.weight.detach().double() @ g).square().sum().sqrt()) for g in grads]
        flow = [sum(projected[i] * weights[i][j] for i in targets for j in visual) for targets in (text, visual)]
        flows.append([value / len(visual) for value in flow])
    return torch.tensor(flows, dtype=torch.float64), value.detach().item()


@pytest.mark.parametrize("gradient", ["layer", "last"])
@pytest.mark.parametrize("loss", ["next", "prompt"])
def test_flow_is_eq_4_and_5_written_out(mini, loss, gradient):
    prompts = [mini.prompt(0), mini.prompt(1, 2, 9)]
    expected = [slow_flow(mini, prompt, loss, gradient) for prompt in prompts]
    flows = torch.stack([flow for flow, _ in expected])
    for side in ("left", "right"):
        measured = saliency_flow(mini.model(), mini.batch(prompts, side), loss, gradient)
        found = torch.stack([measured.visual_to_text, measured.intra_visual], dim=1)
        torch.testing.assert_close(found, flows.mean(dim=0), rtol=1e-4, atol=1e-7)
        assert measured.loss == pytest.approx(sum(value for _, value in expected) / 2, rel=1e-4)
    alone = saliency_flow(mini.model(), mini.batch(prompts[:1]), loss, gradient)
    torch.testing.assert_close(alone.visual_to_text, flows[0, :, 0], rtol=1e-4, atol=1e-7)


def test_by_the_letter_visual_tokens_exchange_nothing(mini):
    """Behind the last layer the next token depends on one state only, so Eq. 4 leaves no flow into visual tokens."""
    inputs = mini.batch([mini.prompt(0)])
    assert not saliency_flow(mini.model(), inputs, loss="next", gradient="last").intra_visual.any()
    assert (saliency_flow(mini.model(), inputs, loss="next").intra_visual[:-1] > 0).all()


def test_the_model_comes_out_as_it_went_in(mini, untouched, breaking):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            with untouched(model):
                saliency_flow(model, inputs)
            with breaking(model), untouched(model), pytest.raises(RuntimeError, match="broken"):
                saliency_flow(model, inputs)
            assert torch.is_grad_enabled() == enabled


def test_the_graph_begins_at_the_decoder(mini):
    model, seen = mini.model(), []
    towers = [getattr(model.model, name, None) for name in ("vision_tower", "image_tower", "visual")]
    (tower,) = [tower for tower in towers if tower is not None]
    handle = tower.register_forward_hook(lambda _module, _args, output: seen.append(output[0].requires_grad))
    try:
        saliency_flow(model, mini.batch([mini.prompt(0)]))
    finally:
        handle.remove()
    assert seen == [False]


def test_neither_frozen_weights_nor_no_grad_change_it(mini):
    model, inputs = copy.deepcopy(mini.model()), mini.batch([mini.prompt(0)])
    expected = saliency_flow(model, inputs)
    model.requires_grad_(False)
    with torch.no_grad():
        found = saliency_flow(model, inputs)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found.visual_to_text, expected.visual_to_text, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.intra_visual, expected.intra_visual, rtol=1e-5, atol=1e-8)


def test_what_cannot_be_measured_is_refused():
    mini = MINIATURES["llava"]
    model, prompt = copy.deepcopy(mini.model()), mini.prompt(0)
    inputs = mini.batch([prompt])
    with pytest.raises(HalfVError, match="'answer'"):
        saliency_flow(model, inputs, loss="answer")
    with pytest.raises(HalfVError, match="no text behind its picture"):
        saliency_flow(model, mini.batch([{**prompt, "ids": prompt["ids"][:-8]}]), loss="prompt")
    model.model.language_model.layers[2].self_attn.v_proj.to("meta")
    with pytest.raises(HalfVError, match="layer 2 keeps its value projection quantized or offloaded"):
        saliency_flow(model, inputs)
