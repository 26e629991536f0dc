"""Operations: the formula against a counter inside torch, against the paper's tables, and laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from halfv_accel import Plan, Stage, accelerate, halfv_plan, paper_flops, prefill_flops
from halfv_accel.flops import Decoder, selection_flops

from .miniatures import VOCABULARY, WIDTH
from .refusing import refusal

sizes = st.builds(
    Decoder,
    layers=st.integers(3, 40),
    hidden=st.integers(1, 64).map(lambda n: n * 8),
    intermediate=st.integers(8, 512),
    heads=st.just(8),
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    head_dim=st.integers(1, 64),
)
tokens = st.integers(1, 3000)
plans = st.one_of(
    st.builds(lambda r: halfv_plan(ivr_layer=1, ivr_retention=r), st.floats(0.01, 1)),
    st.builds(lambda r: halfv_plan(ivr_layer=1, ivr_retention=r, ssr_mode="freeze", ssr_layer=2), st.floats(0.01, 1)),
    st.builds(
        lambda r: halfv_plan(ivr_layer=1, ivr_retention=r, ssr_mode="sparse", ssr_layer=2, ssr_retention=r / 2),
        st.floats(0.01, 1),
    ),
)


@given(sizes, tokens, tokens)
def test_keeping_everything_costs_the_untouched_model(decoder, visual, text):
    plan = halfv_plan(ivr_layer=1, ivr_retention=1.0)
    for count in (prefill_flops, paper_flops):
        assert count(decoder, visual, text, plan) == count(decoder, visual, text)


@given(sizes, tokens, tokens, plans)
def test_a_plan_never_costs_more_and_never_less_than_text_alone(decoder, visual, text, plan):
    for count in (prefill_flops, paper_flops):
        assert count(decoder, 0, text) < count(decoder, visual, text, plan) <= count(decoder, visual, text)
    assert prefill_flops(decoder, visual, text, plan, causal=True) <= prefill_flops(decoder, visual, text, plan)


TABLE_3 = [  # layers, h, m, visual tokens (Table 11), TFLOPs of the untouched model (Table 3)
    ("LLaVA-1.5-7B", 32, 4096, 11008, 576, 8.31),
    ("LLaVA-1.5-13B", 40, 5120, 13824, 576, 16.21),
    ("LLaVA-NeXT-7B", 32, 4096, 14336, 2352, 40.42),
    ("Qwen2.5-VL-7B", 28, 3584, 18944, 2352, 36.63),
]


@pytest.mark.parametrize(("name", "layers", "hidden", "intermediate", "visual", "published"), TABLE_3)
def test_the_paper_s_own_numbers(name, layers, hidden, intermediate, visual, published):
    decoder = Decoder(layers, hidden, intermediate, heads=32, kv_heads=32, head_dim=hidden // 32)
    assert round(paper_flops(decoder, visual, 50) / 1e12, 2) == pytest.approx(published, abs=0.011)
    assert prefill_flops(decoder, visual, 50) == paper_flops(decoder, visual, 50)  # as many key/value heads as heads


PLANS = {
    "prune": halfv_plan(ivr_layer=2, ivr_retention=0.4, anchor_ratio=0.3),
    "sparse": halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=3, ssr_retention=0.1),
    "freeze": halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=4),
}


def counted(model, inputs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    return counter.get_total_flops()


@pytest.mark.parametrize("plan", PLANS)
def test_the_counter_inside_torch_agrees_to_the_last_operation(mini, plan):
    """Eager attention, so that every product is seen; vision tower and lm_head are the same with and without a plan."""
    model, inputs = mini.model("eager"), mini.batch([mini.prompt(0)])
    visual = int((inputs["input_ids"] == 1).sum())
    text = inputs["input_ids"].shape[1] - visual
    plain = counted(model, inputs)
    with accelerate(model, PLANS[plan]):
        reduced = counted(model, inputs)
    config, plan = model.config, PLANS[plan]
    saved = prefill_flops(config, visual, text) - prefill_flops(config, visual, text, plan)
    assert plain - reduced == saved - selection_flops(config, visual, plan)


def test_a_strategy_counts_its_own_operations_or_is_refused(mini):
    class Silent:
        def select(self, view, budget):
            raise AssertionError("counting chooses nothing")

    class Counting(Silent):
        def flops(self, decoder, candidates, kept):
            return 1000 * candidates + kept

    config = mini.build().config
    refusal(lambda: selection_flops(config, 100, Plan((Stage("mine", 1, Silent(), 0.5),))), "Silent.*give it flops")
    assert selection_flops(config, 100, Plan((Stage("mine", 1, Silent(), 1.0),))) == 0  # it is never asked
    stages = Stage("mine", 1, Counting(), 0.5), Stage("again", 2, Counting(), 0.1)
    assert selection_flops(config, 100, Plan(stages)) == 100_050 + 50_010


def test_text_only_agrees_absolutely(mini):
    model, inputs = mini.model("eager"), mini.batch([mini.prompt(0, 0)])
    text = inputs["input_ids"].shape[1]
    lm_head = 2 * WIDTH * VOCABULARY  # of the last token
    angles = text * Decoder.of(model.config).head_dim  # transformers 5.17 makes rotary angles by a matrix product
    beyond = counted(model, inputs) - prefill_flops(model.config, 0, text) - lm_head
    assert beyond in (0, angles, 3 * angles)  # 3: height, width and time
