"""What is not supported is refused before the forward pass, in one line that names the way out."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, DynamicCache, GenerationConfig, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from halfv_accel import HalfVError, Plan, Stage, accelerate, halfv_plan, strategies
from halfv_accel.strategies import STRATEGIES, register

from .miniatures import MiniLlava, widen
from .refusing import refusal

PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.5)


def untouched_forward(model, monkeypatch):
    """Make any computation in the decoder a failure."""

    def forward(*_, **__):
        pytest.fail("the decoder ran")

    monkeypatch.setattr(model.model.language_model.layers[0], "forward", forward)


GENERATE = {
    "use_cache": dict(use_cache=False),
    "prompt_lookup_num_tokens": dict(prompt_lookup_num_tokens=2),
    "prefill_chunk_size": dict(prefill_chunk_size=4),
    "cache_implementation": dict(cache_implementation="static"),
    "assistant_model": dict(assistant_model=nn.Linear(1, 1)),
    "custom_generate": dict(custom_generate=print),
}


@pytest.mark.parametrize("word", GENERATE)
@pytest.mark.parametrize("through", ["keyword", "config", "model"])
def test_ways_of_generating(mini, word, through, monkeypatch):
    options, model = GENERATE[word], mini.model()
    inputs = mini.batch([mini.prompt(0)])
    if through != "keyword" and word in ("assistant_model", "custom_generate"):
        pytest.skip("only a keyword")
    if through == "config":
        options = {"generation_config": GenerationConfig(**options)}
    if through == "model":
        monkeypatch.setattr(model, "generation_config", GenerationConfig(**options))
        options = {}
    with accelerate(model, PLAN):
        untouched_forward(model, monkeypatch)
        refusal(lambda: model.generate(**inputs, max_new_tokens=2, **options), word)


@pytest.mark.parametrize("kind", ["static", "offloaded", "quantized", "paged"])
def test_cache_implementations(mini, kind, monkeypatch):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN):
        untouched_forward(model, monkeypatch)
        refusal(
            lambda: model.generate(**inputs, cache_implementation=kind), f"cache_implementation='{kind}'.*leave it out"
        )


def test_caches(mini, monkeypatch):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    sliding = DynamicCache(config=model.config)
    sliding.layers[3] = DynamicSlidingWindowLayer(sliding_window=4)
    with accelerate(model, PLAN):
        untouched_forward(model, monkeypatch)
        refusal(lambda: model(**inputs, past_key_values=sliding), "SlidingWindow.*default cache")
        static = StaticCache(config=model.config, max_cache_len=64)
        refusal(lambda: model(**inputs, past_key_values=static), "static.*default cache")
        refusal(lambda: model(**inputs, past_key_values=((1, 2),)), "tuple")


def test_a_reduced_cache_outside_the_block(mini, attention):
    model = mini.model(attention)
    with torch.no_grad(), accelerate(model, PLAN):
        cache = model(**mini.batch([mini.prompt(0)])).past_key_values
    try:
        model(input_ids=torch.tensor([[9]]), past_key_values=cache)
    except HalfVError as error:
        assert "inside the same accelerate" in str(error)
    else:
        pytest.fail("decoding went on without the hooks")


def test_prompts(mini, monkeypatch):
    model, prompt = mini.model(), mini.prompt(0)
    inputs = mini.batch([prompt])
    visual_last = mini.batch([{**prompt, "ids": prompt["ids"][: prompt["ids"].index(1) + prompt["ids"].count(1)]}])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    four = torch.ones(1, 1, *[inputs["input_ids"].shape[1]] * 2, dtype=torch.bool)
    with accelerate(model, PLAN):
        untouched_forward(model, monkeypatch)
        refusal(lambda: model(**visual_last), "ends in a visual token")
        refusal(lambda: model(inputs_embeds=embeds), "inputs_embeds.*input_ids")
        refusal(lambda: model(**inputs, output_attentions=True), "output_attentions")
        refusal(lambda: model(**{**inputs, "attention_mask": four}), "2-D mask")
        short = inputs["attention_mask"][:, 1:]
        refusal(lambda: model(**{**inputs, "attention_mask": short}), "covers .* tokens, but .* hold")


def test_the_sentence_names_what_the_user_can_change(mini, monkeypatch):
    """input_ids were given, so they are not asked for; a cache makes the mask, so the cache is named."""
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    static = StaticCache(config=model.config, max_cache_len=64)
    with accelerate(model, PLAN):
        untouched_forward(model, monkeypatch)
        refusal(lambda: model.generate(**inputs, inputs_embeds=embeds, max_new_tokens=2), "leave inputs_embeds out")
        refusal(
            lambda: model.generate(**inputs, past_key_values=static, max_new_tokens=2),
            "StaticCache .*leave out past_key_values",
        )


def test_embeddings_behind_a_cache(mini):
    """Several at once may be a picture; one is a generated token."""
    model = mini.model()
    with torch.no_grad(), accelerate(model, PLAN):
        cache = model(**mini.batch([mini.prompt(0)])).past_key_values
        embeds = model.get_input_embeddings()(torch.tensor([[9, 8]]))
        refusal(lambda: model(inputs_embeds=embeds, past_key_values=cache), "inputs_embeds without input_ids")


def test_features_with_embeddings_only(mini):
    if mini.name == "llava":
        pytest.skip("LLaVA itself takes either, never both")
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with accelerate(model, PLAN):
        refusal(lambda: model(**inputs, inputs_embeds=embeds), "without input_ids")


def test_models(mini):
    model = mini.model()
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    refusal(lambda: accelerate(bert, PLAN), "BertModel.*LlavaForConditionalGeneration.*Qwen2_5_VL")
    refusal(lambda: accelerate(torch.compile(model), PLAN), "not wrapped or compiled")
    refusal(lambda: accelerate(copy.deepcopy(model).train(), PLAN), r"model\.eval\(\)")
    refusal(lambda: accelerate(model, halfv_plan(ivr_layer=6, ivr_retention=0.5)), "the model has 6 layers")
    refusal(lambda: accelerate(model, {"ivr": 2}), "dict is not a plan")
    refusal(lambda: accelerate(model, "missing.json"), "missing.json does not exist")
    refusal(lambda: accelerate(nn.DataParallel(model), PLAN), "DataParallel.*not wrapped")


@pytest.mark.parametrize("implementation", ["flex_attention", "paged|flash_attention_2", "paged|eager"])
def test_attention_implementations(mini, implementation, monkeypatch):
    model = mini.model()
    inputs, config = mini.batch([mini.prompt(0)]), model.model.language_model.config
    with accelerate(model, PLAN):
        untouched_forward(model, monkeypatch)
        monkeypatch.setattr(config, "_attn_implementation_internal", implementation)
        refusal(lambda: model(**inputs), f"'{re.escape(implementation)}'.*sdpa")


def test_freeze_under_flash_attention(mini, monkeypatch):
    model = mini.model()
    freeze = halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=3)
    inputs, config = mini.batch([mini.prompt(0)]), model.model.language_model.config
    with accelerate(model, freeze):
        untouched_forward(model, monkeypatch)
        monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
        refusal(lambda: model(**inputs), "'flash_attention_2' cannot show frozen.*sdpa")


def test_continuous_batching_and_replicas(mini, monkeypatch):
    model = mini.model()
    inputs = mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN):
        untouched_forward(model, monkeypatch)
        refusal(lambda: model.generate_batch([[5, 6]]), "continuous batching.*model.generate")
        refusal(lambda: model(**inputs, cache=object()), "continuous batching")
        replica = model.model._replicate_for_data_parallel()
        refusal(lambda: replica(**inputs), "DataParallel.*one process per GPU")


def test_a_cache_of_an_earlier_starting_plan(mini, monkeypatch):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN):
        cache = model(**inputs).past_key_values
    with accelerate(model, halfv_plan(ivr_layer=4, ivr_retention=0.5)):
        untouched_forward(model, monkeypatch)
        refusal(lambda: model(input_ids=torch.tensor([[9]]), past_key_values=cache), "starts before layer 3")


def lengths(cache):
    return [layer.keys.shape[-2] for layer in cache.layers]


@torch.no_grad()
def test_a_refused_cache_is_as_it_was(mini, attention):
    """Refused in front of the first layer: going on inside the block then works as if nothing had been tried."""
    model, inputs = mini.model(attention), mini.batch([mini.prompt(0), mini.prompt(1, 2)])
    step, run = dict(input_ids=torch.tensor([[9], [8]])), accelerate(model, PLAN)
    with run:
        cache = model(**inputs).past_key_values
        wanted = model(**step, past_key_values=copy.deepcopy(cache)).logits
    before = lengths(cache)
    refusal(lambda: model(**step, past_key_values=cache), "inside the same accelerate")
    refusal(lambda: cache.crop(-1), "at most 0 tokens")
    assert lengths(cache) == before
    with run:
        assert torch.equal(model(**step, past_key_values=cache).logits, wanted)
        cache.crop(-1)
        assert lengths(cache) == before
        assert torch.equal(model(**step, past_key_values=cache).logits, wanted)


@torch.no_grad()
@pytest.mark.parametrize("site", ["self_attn", "mlp"])
def test_a_cache_whose_forward_broke_off(mini, site):
    """Its layers hold different conversations, and each alone would go on without a complaint."""
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    step = dict(input_ids=torch.tensor([[9]]))

    def fail(*_):
        raise ZeroDivisionError

    with accelerate(model, PLAN):
        cache = model(**inputs).past_key_values
        handle = getattr(model.model.language_model.layers[3], site).register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(**step, past_key_values=cache)
        handle.remove()
        refusal(lambda: model(**step, past_key_values=cache), "broke off in the middle.*empty cache")
        model(**inputs)


@torch.no_grad()
def test_a_cache_that_was_emptied_is_free_again(mini, attention):
    model, picture, text = mini.model(attention), mini.batch([mini.prompt(0)]), mini.batch([mini.prompt(1, 0)])
    with accelerate(model, PLAN):
        cache = model(**picture).past_key_values
        wanted = model(**picture).logits
        cache.reset()
        assert torch.equal(model(**picture, past_key_values=cache).logits, wanted)
        cache.reset()
        inside = model(**text, past_key_values=cache).logits
    cache.reset()
    assert torch.equal(model(**text, past_key_values=cache).logits, inside)


def test_training_inside_the_block(mini):
    model, inputs = copy.deepcopy(mini.model()), mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN):
        model.train()
        refusal(lambda: model(**inputs), r"model\.eval\(\)")


def test_a_model_with_sliding_layers():
    model = widen(MiniLlava().build())
    model.model.language_model.config.layer_types = ["full_attention"] * 5 + ["sliding_attention"]
    model.model.language_model.config.sliding_window = 4
    refusal(lambda: accelerate(model, PLAN), "own cache.*SlidingWindow")


def test_a_strategy_that_breaks_its_budget(mini):
    class Greedy:
        def select(self, view, budget):
            return view.present

    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with accelerate(model, Plan((Stage("mine", 2, Greedy(), 0.5),))):
        refusal(lambda: model(**inputs), "did not choose")


PLANS = [
    (dict(ivr_layer=0, ivr_retention=0.5), "layer 0.*at least 1"),
    (dict(ivr_layer=2.0, ivr_retention=0.5), "whole number"),
    (dict(ivr_layer=True, ivr_retention=0.5), "whole number"),
    (dict(ivr_layer=2, ivr_retention=0), r"retention 0: .*\(0, 1\]"),
    (dict(ivr_layer=2, ivr_retention=1.5), "1.5"),
    (dict(ivr_layer=2, ivr_retention=float("nan")), "nan"),
    (dict(ivr_layer=2, ivr_retention="half"), "'half'"),
    (dict(ivr_layer=2, ivr_retention=0.5, anchor_ratio=-1), "anchor_ratio is -1"),
    (dict(ivr_layer=2, ivr_retention=0.5, anchor_ratio="x"), "anchor_ratio is 'x'"),
    (dict(ivr_layer=2, ivr_retention=0.5, fidelity="exact"), "'exact'.*'paper'"),
    (dict(ivr_layer=2, ivr_retention=0.5, ssr_mode="off"), "'off'.*'none'"),
    (dict(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze"), "needs ssr_layer"),
    (dict(ivr_layer=2, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=4), "needs ssr_retention"),
    (dict(ivr_layer=2, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=2, ssr_retention=0.1), "at least 3"),
    (dict(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=1), "at least 2"),
]


@pytest.mark.parametrize(("options", "pattern"), PLANS)
def test_plans(options, pattern):
    refusal(lambda: halfv_plan(**options), pattern)


def test_stages():
    refusal(lambda: Plan(()), "no stage")
    refusal(lambda: Stage("x", 2, "best", 0.5), "no strategy 'best'.*anchor_cover")
    refusal(lambda: Stage("x", 2, object(), 0.5), "not a strategy")
    refusal(lambda: Stage("x", 2, "anchor_cover", 0.5, "merge"), "'merge'")
    freeze, drop = Stage("a", 2, "keep_none", 0.0, "freeze"), Stage("b", 3, "anchor_cover", 0.5)
    refusal(lambda: Plan((freeze, drop)), "make the freeze last")


def test_registration():
    class NotData:
        def select(self, view, budget): ...

    refusal(lambda: register("Not Snake")(NotData), "snake_case")
    refusal(lambda: register("anchor_cover")(NotData), "registered already")
    refusal(lambda: register("not_data")(NotData), "frozen dataclass")


def test_a_registered_class_is_found_by_its_name_and_is_itself(monkeypatch):
    monkeypatch.setattr(STRATEGIES, "_classes", dict(STRATEGIES._classes))

    @dataclass(frozen=True)
    class First:
        def select(self, view, budget):
            return view.present

    assert register("first")(First) is First
    assert Stage("mine", 1, "first", 0.5).strategy == First()


def test_every_strategy_of_the_package_is_registered_in_its_own_file():
    files = Path(strategies.__file__).parent.glob("*.py")
    registering = {path.stem for path in files if "\n@register(" in path.read_text(encoding="utf-8")}
    assert set(STRATEGIES) == registering
    assert all(STRATEGIES._classes[name].__module__ == f"halfv_accel.strategies.{name}" for name in STRATEGIES)
