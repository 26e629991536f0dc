"""The ways in which people really run a model: threads, streams, labels, half precision, weights in other places."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

from halfv_accel import accelerate, halfv_plan
from halfv_accel.strategies.anchor_cover import farthest_points

PLANS = {
    "sparse": halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=4, ssr_retention=0.1),
    "freeze": halfv_plan(ivr_layer=1, ivr_retention=0.4, ssr_mode="freeze", ssr_layer=3),
}
OPTIONS = dict(max_new_tokens=4, do_sample=False)


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


def test_threads_share_a_model(mini, plan):
    """Each thread's prefill is its own, with prompts of different lengths under way at once."""
    model = mini.model()
    batches = [mini.batch([mini.prompt(seed, 1 + seed % 2, 4 + seed)]) for seed in range(6)]
    with torch.no_grad(), accelerate(model, plan):
        alone = [model.generate(**inputs, **OPTIONS) for inputs in batches]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda inputs: model.generate(**inputs, **OPTIONS), batches * 3))
    assert all(torch.equal(a, b) for a, b in zip(together, alone * 3, strict=True))


class Words:
    """A tokenizer as far as streaming needs one."""

    def decode(self, ids, **_):
        return "".join(f"{token} " for token in ids)


def test_streaming(mini, plan):
    from transformers import TextIteratorStreamer

    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with accelerate(model, plan) as run:
        wanted = model.generate(**inputs, **OPTIONS)[0, -4:].tolist()
        run.last = None
        streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
        thread = Thread(target=model.generate, kwargs=dict(**inputs, **OPTIONS, streamer=streamer))
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert [int(word) for word in text.split()] == wanted
    assert run.last.stages  # reported from the other thread, too


@torch.no_grad()
def test_labels_on_text_give_the_loss_of_the_logits(mini, plan):
    model, inputs = mini.model(), mini.batch([mini.prompt(0), mini.prompt(1, 2)])
    ids = inputs["input_ids"]
    labels = ids.masked_fill((ids <= 4) | (inputs["attention_mask"] == 0), -100)
    with accelerate(model, plan):
        out = model(**inputs, labels=labels)
    shifted, targets = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    assert (targets != -100).sum() > 10
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(shifted, targets))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_full_precision(mini, attention, plan, dtype):
    """With everything kept bit for bit the untouched model's; pruned with the float32 choice, near its logits."""
    model, inputs = copy.deepcopy(mini.model(attention)).to(dtype), mini.batch([mini.prompt(0)])
    inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        plain = model(**inputs).logits
        with accelerate(model, halfv_plan(ivr_layer=1, ivr_retention=1.0)):
            assert torch.equal(model(**inputs).logits, plain)
        with accelerate(model, plan) as run:
            half = model(**inputs).logits[:, -1].float()
            kept = run.last.kept
            tokens = model.generate(**inputs, **OPTIONS)
        full = model.float()
        inputs = {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}
        with accelerate(full, plan) as run:
            wanted = full(**inputs).logits[:, -1]
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 4
    if all(torch.equal(a, b) for a, b in zip(kept, run.last.kept, strict=True)):  # rounding may flip a near tie
        assert (half - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert [k.sum() for k in kept] == [k.sum() for k in run.last.kept]


def spread(model, way, folder):
    """The decoder's weights elsewhere. (A whole LLaVA-NeXT cannot be offloaded: it loses its newline, untouched.)"""
    text, here = model.model.language_model, torch.device("cpu")
    if way == "cpu offload":
        cpu_offload(text, execution_device=here)
    elif way == "disk offload":
        disk_offload(text, folder, execution_device=here)
    else:
        places = {f"layers.{i}": "cpu" if i % 2 else "disk" for i in range(6)}
        rest = {name: "cpu" for name, _ in text.named_children() if name != "layers"}
        dispatch_model(text, {**rest, **places}, main_device=here, offload_dir=folder, force_hooks=True)
    return model


@pytest.mark.parametrize("way", ["cpu offload", "disk offload", "device map"])
def test_weights_in_other_places(mini, plan, way, tmp_path):
    """accelerate's hooks fetch weights layer by layer; HalfV's own projections have to trigger them, too."""
    model, inputs = mini.model(), mini.batch([mini.prompt(0), mini.prompt(1, 2)])
    with torch.no_grad():
        with accelerate(model, plan) as run:
            logits, tokens = model(**inputs).logits, model.generate(**inputs, **OPTIONS)
            kept = run.last.kept
        away = spread(copy.deepcopy(model), way, tmp_path)
        assert any(parameter.is_meta for parameter in away.parameters())
        with accelerate(away, plan) as run:
            assert torch.equal(away(**inputs).logits, logits)
            assert torch.equal(away.generate(**inputs, **OPTIONS), tokens)
        assert all(torch.equal(a, b) for a, b in zip(run.last.kept, kept, strict=True))


@torch.no_grad()
def test_autocast_chooses_as_full_precision_products_do(mini):
    """Scores and cosines are float32 products even where autocast would make them bfloat16."""
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    states = torch.randn(2, 40, 32)
    present = torch.ones(2, 40, dtype=torch.bool)
    arguments = (states, present, torch.zeros_like(present), torch.tensor([15, 20]))
    wanted = farthest_points(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(farthest_points(*arguments), wanted)
        with accelerate(model, PLANS["freeze"]) as run:
            assert model(**inputs).logits.isfinite().all()
    assert run.last.stages
