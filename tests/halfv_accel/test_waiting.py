"""What stays off the critical path: waiting for the device, and work that is the same for all layers."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from halfv_accel import accelerate, halfv_plan
from halfv_accel.engine import run as engine
from halfv_accel.engine.rows import Rows
from halfv_accel.plan import Plan
from halfv_accel.strategies import STRATEGIES, Adaptive

from .miniatures import MINIATURES
from .test_matrix import stage

PLANS = {
    "sparse": halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=3, ssr_retention=0.2),
    "freeze": halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=3),
}
CHOICES = {"sparse": 2, "freeze": 1}  # freezing everything needs no choice
READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy")
WAITING = (
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "_linalg_eigh",
    "_linalg_svd",
)
OURS = ("halfv_accel/engine", "halfv_accel/adapters", "halfv_accel/strategies", "halfv_accel/kernels")


@pytest.fixture(params=PLANS)
def name(request):
    return request.param


class Waits(TorchDispatchMode):
    """Operations whose result has a size that only the device knows, or that bring it to the host."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        masks = name in ("index", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in WAITING or masks or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            frame = sys._getframe(1)
            while "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            note(self.found, name, frame, OURS)
        return function(*args, **kwargs)


def note(found, way, frame, rooms):
    """Add a way of waiting to those found, if a line of these rooms is the one that waits."""
    if any(room in frame.f_code.co_filename for room in rooms):
        found.append(f"{way} at {frame.f_code.co_filename}:{frame.f_lineno}")


def watch(monkeypatch, rooms):
    """Names of the ways in which lines of these rooms read a tensor's content, each of which waits for a GPU."""
    found = []

    def watched(way):
        original = getattr(torch.Tensor, way)

        def read(self, *args, **kwargs):
            note(found, way, sys._getframe(1), rooms)
            return original(self, *args, **kwargs)

        return read

    for way in READS:
        monkeypatch.setattr(torch.Tensor, way, watched(way))
    return found


@pytest.fixture
def reads(monkeypatch):
    """By the engine's own lines. What a choice reads beside is the strategy's."""
    return watch(monkeypatch, OURS[:2])


@pytest.fixture
def all_reads(monkeypatch):
    """By all that runs in a prefill."""
    return watch(monkeypatch, OURS)


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


@pytest.mark.parametrize("family", ["llava-next-mistral", "qwen2.5-vl"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_waits_the_longer_the_more_it_keeps(family, strategy, all_reads):
    mini, counts = MINIATURES[family], []
    model, inputs = mini.model(), mini.batch([mini.prompt(0, 2), mini.prompt(1, 1, 4)])
    for share in (0.15, 0.45, 0.9):
        one = stage(strategy) if strategy == "keep_none" else replace(stage(strategy), retention=share, least=None)
        with torch.no_grad(), accelerate(model, Plan((one,))):
            all_reads.clear()
            with Waits(all_reads):
                model(**inputs, use_cache=False)
        counts.append(len(all_reads))
    assert counts[0] == counts[1] == counts[2], all_reads
    assert sum("strategies" in each for each in all_reads) <= 6, all_reads  # once for each size that it asks for


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if isinstance(STRATEGIES.resolve(name), Adaptive)])
def test_to_decide_how_many_stay_waits_no_longer_for_more_words(strategy, all_reads):
    mini, counts = MINIATURES["qwen2.5-vl"], []
    for words in (2, 12):
        inputs = mini.batch([mini.prompt(0, 2, words), mini.prompt(1, 1, words)])
        with torch.no_grad(), accelerate(mini.model(), Plan((replace(stage(strategy), least=0.05),))):
            all_reads.clear()
            with Waits(all_reads):
                mini.model()(**inputs, use_cache=False)
        counts.append(len(all_reads))
    assert counts[0] == counts[1], all_reads
