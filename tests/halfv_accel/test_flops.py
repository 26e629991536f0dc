"""Operations: the formula against a counter inside torch, against the paper's tables, and laws."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlavaConfig, LlavaNextConfig, MistralConfig, Qwen2_5_VLConfig

from halfv_accel import Plan, Stage, accelerate, halfv_plan, paper_flops, prefill_flops
from halfv_accel.adapters import family_of
from halfv_accel.decoder import Tower
from halfv_accel.flops import Decoder, as_it_ran, head_flops, selection_flops
from halfv_accel.strategies import AdaVTP, HiRED, PruMerge, needs_of

from .refusing import refusal
from .test_matrix import PLANS as EVERY

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


def language_model(layers, hidden, intermediate, heads, kv_heads, vocabulary):
    return dict(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
    )


LLAVA_7B = LlavaConfig(text_config=LlamaConfig(**language_model(32, 4096, 11008, 32, 32, 32064)))
LLAVA_13B = LlavaConfig(text_config=LlamaConfig(**language_model(40, 5120, 13824, 40, 40, 32064)))
LLAVA_NEXT = LlavaNextConfig(text_config=MistralConfig(**language_model(32, 4096, 14336, 32, 8, 32064)))
QWEN = Qwen2_5_VLConfig(text_config=language_model(28, 3584, 18944, 28, 4, 152064))
TEXT = 50
FREEZE = dict(ivr_layer=3, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=15)
TABLES = {  # visual tokens (Table 11), plan (Table 9), TFLOPs untouched and with HalfV (Table 3)
    "LLaVA-1.5-7B": (LLAVA_7B, 576, FREEZE, 8.31, 3.12),
    "LLaVA-1.5-13B": (LLAVA_13B, 576, FREEZE, 16.21, 4.81),
    "LLaVA-NeXT-7B": (LLAVA_NEXT, 2352, dict(FREEZE, ivr_layer=2, anchor_ratio=0.1, ssr_layer=16), 40.42, 11.22),
    "Qwen2.5-VL-7B": (
        QWEN,
        2352,
        dict(ivr_layer=2, ivr_retention=0.25, anchor_ratio=0.1, ssr_mode="sparse", ssr_layer=21, ssr_retention=0.05),
        36.63,
        8.91,
    ),
}


def products(config, visual, plan, square=False):
    """Every matrix product of the prefill as (what, m, k, n); `square`: as if there were no grouped queries."""
    text = config.text_config
    hidden, ffn, heads = text.hidden_size, text.intermediate_size, text.num_attention_heads
    size, groups = hidden // heads, heads if square else text.num_key_value_heads
    for layer in range(text.num_hidden_layers):
        active, frozen = visual, 0
        if plan and layer >= plan["ivr_layer"]:
            active = int(visual * plan["ivr_retention"])
        if plan and layer >= plan["ssr_layer"]:
            freezes = plan["ssr_mode"] == "freeze"
            active, frozen = (0, active) if freezes else (int(visual * plan["ssr_retention"]), 0)
        n = TEXT + active
        yield from [("q", n, hidden, hidden), ("o", n, hidden, hidden)]
        yield from [("gate", n, hidden, ffn), ("up", n, hidden, ffn), ("down", n, ffn, hidden)]
        yield from [(kind, n, hidden, groups * size) for kind in ("k", "v")]
        yield from [("frozen " + kind, frozen, hidden, groups * size) for kind in ("k", "v")]
        for _ in range(heads):
            yield from [("scores", n, size, n + frozen), ("mix", n, n + frozen, size)]


def operations(config, visual, plan, frozen=True, **options):
    """With or without the keys and values of frozen tokens."""
    listed = products(config, visual, plan, **options)
    return sum(2 * m * k * n for what, m, k, n in listed if frozen or not what.startswith("frozen"))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("reduced", [False, True])
def test_counts_are_the_sum_of_all_matrix_products(name, reduced):
    config, visual, options, *_ = TABLES[name]
    options, plan = (options, halfv_plan(**options)) if reduced else (None, None)
    assert prefill_flops(config, visual, TEXT, plan) == operations(config, visual, options)
    assert paper_flops(config, visual, TEXT, plan) == operations(config, visual, options, frozen=False, square=True)


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_untouched_numbers_follow_from_its_table_11(name):
    config, visual, _, untouched, _ = TABLES[name]
    assert round(paper_flops(config, visual, TEXT) / 1e12, 2) == untouched


def test_the_papers_halfv_numbers_do_not_follow_from_its_table_9():
    found = {}
    for name, (config, visual, options, _, published) in TABLES.items():
        plan = halfv_plan(**options)
        eq_44 = round(paper_flops(config, visual, TEXT, plan) / 1e12, 2)
        layers = round(prefill_flops(config, visual, TEXT, plan) / 1e12, 2)
        found[name] = eq_44, layers == published
        assert eq_44 != published
    assert [eq_44 for eq_44, _ in found.values()] == [2.79, 4.62, 11.63, 9.51]
    assert [name for name, (_, exactly) in found.items() if exactly] == ["LLaVA-1.5-7B"]


def test_one_more_dense_layer_gives_the_13b_s_number_and_no_other_model_s():
    """Table 3 of LLaVA-1.5-13B is Eq. 44 with IVR at layer 4 in place of Table 9's 3."""
    found = {}
    for name, (config, visual, options, _, published) in TABLES.items():
        later = halfv_plan(**dict(options, ivr_layer=options["ivr_layer"] + 1))
        count = paper_flops(config, visual, TEXT, later) / 1e12
        found[name] = f"{count:.3f}", round(count, 2) == published
    assert found["LLaVA-1.5-13B"] == ("4.807", True)
    assert [name for name, (_, exactly) in found.items() if exactly] == ["LLaVA-1.5-13B"]


def documented(first):
    """Rows of the table in docs/fidelity.md whose head holds this, as texts by model."""
    lines = (Path(__file__).parents[2] / "docs" / "fidelity.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| model") and first in line)
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name: numbers for name, *numbers in cells}


def exact(config, visual, plan):
    chosen = 0 if plan is None else selection_flops(config, visual, plan)
    return prefill_flops(config, visual, TEXT, plan) + chosen + head_flops(config)


def test_the_documented_counts_are_those_of_the_code():
    expected = {}
    for name, (config, visual, options, *published) in TABLES.items():
        cells = []
        for number, plan in zip(published, (None, halfv_plan(**options)), strict=True):
            cells += [number, paper_flops(config, visual, TEXT, plan) / 1e12, exact(config, visual, plan) / 1e12]
        expected[name] = [f"{number:.2f}" for number in cells]
    assert documented("untouched") == expected


def test_the_documented_difference_is_that_of_the_code():
    expected = {}
    for name, (config, visual, options, *_) in TABLES.items():
        plan = halfv_plan(**options)
        layers = operations(config, visual, options, frozen=False)
        parts = [
            paper_flops(config, visual, TEXT, plan),
            layers - operations(config, visual, options, frozen=False, square=True),
            operations(config, visual, options) - layers,
            selection_flops(config, visual, plan),
            head_flops(config),
        ]
        assert sum(parts) == exact(config, visual, plan)
        expected[name] = [f"{number / 1e9:.1f}" for number in (*parts, sum(parts))]
    assert documented("grouped queries") == expected


PLANS = {
    "prune": halfv_plan(ivr_layer=2, ivr_retention=0.4, anchor_ratio=0.3),
    "sparse": halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=3, ssr_retention=0.1),
    "freeze": halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=4),
}


def counted(model, inputs, logits=1):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=logits)
    return counter.get_total_flops()


EVERY = {**EVERY, "hired": Plan((Stage("hired", 0, HiRED(region_layer=-1), 0.4),))}  # these towers have two layers
ADAPTIVE = {name: plan for name, plan in EVERY.items() if any(stage.least is not None for stage in plan.stages)}
ADAPTIVE |= {
    "up to everything": Plan((Stage("a", 0, AdaVTP(erank_avg=20.0), 1.0, least=0.1),)),
    "twice": Plan((Stage("a", 0, PruMerge(), 0.8, least=0.2), Stage("b", 2, "sparsevlm", 0.5, least=0.05))),
}


def unseen(family, structure, plan):
    """What the tower's attention costs beside the patches that the prompt shows, as one picture.

    LLaVA-NeXT cuts borders off its crops, and each crop has a CLS token. HiRED asks for two layers, which are one where
    the tower has a single layer of full attention.
    """
    tower, places = Tower.of(family.model.config), structure.places
    asked = [pair for stage in plan.stages for pair in needs_of(stage.strategy).vision if pair[0] == "attention"]
    real = {family.vision_tower("image").layer(layer) for _, layer in asked}
    shown = int((structure.source >= 0).sum())
    crops = int(places.part.max()) + 1
    more = 2 * tower.hidden * (structure.sources - shown + crops - 1) if tower.has_cls else 0
    return len(real) * more - (len(asked) - len(real)) * tower.attention_flops(shown)


@pytest.mark.parametrize("plan", [*PLANS, *EVERY, *ADAPTIVE])
def test_the_counter_inside_torch_agrees_to_the_last_operation(mini, plan):
    """Eager attention, so that every product is seen; vision tower and lm_head are the same with and without a plan."""
    model, inputs = mini.model("eager"), mini.batch([mini.prompt(0)])
    visual = int((inputs["input_ids"] == 1).sum())
    text = inputs["input_ids"].shape[1] - visual
    family = family_of(model)
    structure = family.structure(inputs["input_ids"], inputs)
    separators = int(structure.places.separator.sum())
    plain = counted(model, inputs)
    config, plan = model.config, {**PLANS, **EVERY, **ADAPTIVE}[plan]
    with accelerate(model, plan) as run:
        reduced = counted(model, inputs)
    kept = [stage.after[0] for stage in run.last.stages]
    saved = prefill_flops(config, visual, text) - prefill_flops(config, visual, text, as_it_ran(plan, kept))
    chosen = selection_flops(config, visual, plan, text, separators, kept=kept)
    assert plain - reduced == saved - chosen - unseen(family, structure, plan)
    assert chosen <= selection_flops(config, visual, plan, text, separators)  # the most that it can cost
    assert prefill_flops(config, visual, text, as_it_ran(plan, kept)) <= prefill_flops(config, visual, text, plan)
    if not any(stage.least for stage in plan.stages):
        assert chosen == selection_flops(config, visual, plan, text, separators)


def test_a_strategy_counts_its_own_operations_or_is_refused(mini):
    class Silent:
        def select(self, view, budget):
            raise AssertionError("counting chooses nothing")

    class Counting(Silent):
        def flops(self, sizes):
            return 1000 * sizes.candidates + sizes.kept

    config = mini.build().config
    refusal(lambda: selection_flops(config, 100, Plan((Stage("mine", 1, Silent(), 0.5),))), "Silent.*give it flops")
    assert selection_flops(config, 100, Plan((Stage("mine", 1, Silent(), 1.0),))) == 0  # it is never asked
    stages = Stage("mine", 1, Counting(), 0.5), Stage("again", 2, Counting(), 0.1)
    assert selection_flops(config, 100, Plan(stages)) == 100_050 + 50_010
    assert selection_flops(config, 100, Plan(stages), kept=[40, 7]) == 100_040 + 40_007

    class Deciding(Counting):
        def count(self, view, least, most):
            raise AssertionError("counting chooses nothing")

    class CountingAll(Deciding):
        def flops(self, sizes):
            return 1000 * sizes.candidates - sizes.kept  # the fewer stay, the costlier

        def count_flops(self, sizes):
            return 10**6 + sizes.kept

    plan = Plan((Stage("mine", 1, Deciding(), 0.5, least=0.1),))
    refusal(lambda: selection_flops(config, 100, plan), "Deciding.*give it count_flops")
    plan = Plan((Stage("mine", 1, CountingAll(), 0.5, least=0.1),))
    assert selection_flops(config, 100, plan) == 10**6 + 50 + 100_000 - 10
    assert selection_flops(config, 100, plan, kept=[30]) == 10**6 + 50 + 100_000 - 30


def test_text_only_agrees_absolutely(mini):
    model, inputs = mini.model("eager"), mini.batch([mini.prompt(0, 0)])
    text = inputs["input_ids"].shape[1]
    angles = text * Decoder.of(model.config).head_dim  # transformers 5.17 makes rotary angles by a matrix product
    beyond = counted(model, inputs) - prefill_flops(model.config, 0, text) - head_flops(model.config)
    assert beyond in (0, angles, 3 * angles)  # 3: height, width and time


def test_the_counter_agrees_on_the_lm_head(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    more = counted(model, inputs, logits=9) - counted(model, inputs, logits=2)
    assert more == head_flops(model.config, 9) - head_flops(model.config, 2) == 7 * head_flops(model.config)
