"""What stays off the critical path: waiting for the device, and work that is the same for all layers."""

import sys

import pytest
import torch

from halfv_accel import accelerate, halfv_plan
from halfv_accel.engine import run as engine
from halfv_accel.engine.rows import Rows

PLANS = {
    "sparse": halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=3, ssr_retention=0.2),
    "freeze": halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=3),
}
CHOICES = {"sparse": 2, "freeze": 1}  # freezing everything needs no choice
READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")


@pytest.fixture(params=PLANS)
def name(request):
    return request.param


@pytest.fixture
def reads(monkeypatch):
    """Names of the ways in which this package's own lines read a tensor's content, each of which waits for a GPU."""
    found = []

    def watched(way):
        original = getattr(torch.Tensor, way)

        def read(self, *args):
            caller = sys._getframe(1).f_code.co_filename
            if "halfv_accel/engine" in caller or "halfv_accel/adapters" in caller:
                found.append(f"{way} at {caller}:{sys._getframe(1).f_lineno}")
            return original(self, *args)

        return read

    for way in READS:
        monkeypatch.setattr(torch.Tensor, way, watched(way))
    return found


def test_the_device_is_waited_for_once_before_a_prefill_and_once_for_each_choice(mini, name, reads):
    model, inputs = mini.model(), mini.batch([mini.prompt(0, 2), mini.prompt(1, 1, 4)])
    with torch.no_grad(), accelerate(model, PLANS[name]):
        reads.clear()  # the attention was checked on the way in
        model(**inputs, use_cache=False)
    assert len(reads) == 1 + CHOICES[name], reads


def test_decoding_never_waits(mini, name, reads):
    model, inputs = mini.model(), mini.batch([mini.prompt(0, 2), mini.prompt(1, 1, 4)])
    with accelerate(model, PLANS[name]):
        reads.clear()
        model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert len(reads) == 1 + CHOICES[name], reads  # no more than the prefill's


def test_a_decoding_step_builds_one_mask_for_each_length(mini, name, attention, monkeypatch):
    model, inputs, built = mini.model(attention), mini.batch([mini.prompt(0, 2), mini.prompt(1, 1, 4)]), []
    original = engine.decode_mask
    monkeypatch.setattr(engine, "decode_mask", lambda *args: built.append(1) or original(*args))
    with torch.no_grad(), accelerate(model, PLANS[name]):
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, num_beams=2)
    assert len(built) == 3 * 2  # three steps behind the prefill, and the layers of two stages


def test_one_row_decodes_without_a_mask(mini, name):
    model, inputs, seen = mini.model(), mini.batch([mini.prompt(0, 2)]), []
    with torch.no_grad(), accelerate(model, PLANS[name]):
        cache = model(**inputs, use_cache=True).past_key_values
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["attention_mask"]), with_kwargs=True)
            for layer in model.model.language_model.layers
        ]
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    for hook in hooks:
        hook.remove()
    assert seen == [None] * len(model.model.language_model.layers)


@pytest.mark.parametrize("packed", [Rows.packed_left, Rows.packed_right])
def test_known_counts_change_nothing(packed):
    mask = torch.tensor([[True, False, True, True], [False, False, True, False], [False] * 4])
    told, asked = packed(mask, [3, 1, 0]), packed(mask)
    assert torch.equal(told.index, asked.index)
    assert torch.equal(told.valid, asked.valid)
