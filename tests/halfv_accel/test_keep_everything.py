"""A plan that takes nothing away refuses nothing: whatever the untouched model does, it does with the same result."""

import copy

import pytest
import torch
from transformers import StaticCache

from halfv_accel import accelerate, halfv_plan

from .refusing import refusal

EVERYTHING = halfv_plan(ivr_layer=1, ivr_retention=1.0, ssr_mode="sparse", ssr_layer=3, ssr_retention=1.0)
PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.5)
OPTIONS = dict(max_new_tokens=4, do_sample=False)


def attentions(model, inputs):
    out = model(**inputs, output_attentions=True)
    return [out.logits, *out.attentions]


def embedded(model, inputs):
    return model.get_input_embeddings()(inputs["input_ids"])


def assisted(model, inputs):
    return [model.generate(**inputs, **OPTIONS, assistant_model=assisted.guesser)]


def static_cache(model, inputs):
    return [model(**inputs, past_key_values=StaticCache(config=model.config, max_cache_len=96)).logits]


WAYS = {
    "use_cache": lambda model, inputs: [model.generate(**inputs, **OPTIONS, use_cache=False)],
    "prompt lookup": lambda model, inputs: [model.generate(**inputs, **OPTIONS, prompt_lookup_num_tokens=2)],
    "assistant": assisted,
    "static": lambda model, inputs: [model.generate(**inputs, **OPTIONS, cache_implementation="static")],
    "static cache": static_cache,
    "chunks": lambda model, inputs: [model.generate(**inputs, **OPTIONS, prefill_chunk_size=200)],
    "attentions": attentions,
    "embeddings and pixels": lambda model, inputs: [
        model.generate(**inputs, inputs_embeds=embedded(model, inputs), **OPTIONS)
    ],
    "embeddings": lambda model, inputs: [model(inputs_embeds=embedded(model, inputs)).logits],
}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_whatever_the_untouched_model_does(mini, way):
    model, inputs = mini.model("eager"), mini.batch([mini.prompt(0), mini.prompt(1, 2)])
    if way in ("prompt lookup", "assistant"):  # transformers guesses for one row only
        inputs = mini.batch([mini.prompt(0)])
    assisted.guesser = mini.model("sdpa")
    plain = WAYS[way](model, inputs)
    with accelerate(model, EVERYTHING) as run:
        result = WAYS[way](model, inputs)
    assert len(result) == len(plain)
    assert all(torch.equal(mine, own) for mine, own in zip(result, plain, strict=True))
    if "embeddings" in way:
        assert run.last is None  # nothing says how many visual tokens there were
    else:
        assert run.last.visual_tokens == (inputs["input_ids"] == 1).sum(1).tolist()
        assert [stage.after for stage in run.last.stages] == [run.last.visual_tokens] * 2
    with accelerate(model, PLAN):  # and it is the plan that makes the difference
        refusal(lambda: WAYS[way](model, inputs), ".")


@torch.no_grad()
def test_masks_of_any_shape(mini):
    if hasattr(mini.model().model, "get_rope_index"):
        pytest.skip("Qwen itself reads padding from 2-D masks")
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    inputs["attention_mask"] = torch.ones(1, 1, *[inputs["input_ids"].shape[1]] * 2, dtype=torch.bool).tril()
    plain = model(**inputs).logits
    with accelerate(model, EVERYTHING):
        assert torch.equal(model(**inputs).logits, plain)


def test_training(mini):
    model, inputs = copy.deepcopy(mini.model()).train(), mini.batch([mini.prompt(0)])
    plain = model(**inputs).logits
    with accelerate(model, EVERYTHING):
        assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_a_plan_inside_a_reducing_one_goes_by_itself(mini):
    """The newest run decides what is refused, and a cache that the outer one reduced is still no other's."""
    model, inputs = mini.model("eager"), mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN):
        cache = model(**inputs).past_key_values
        with accelerate(model, halfv_plan(ivr_layer=4, ivr_retention=1.0)):
            model(**inputs, output_attentions=True)
            step = dict(input_ids=torch.tensor([[9]]), past_key_values=cache)
            refusal(lambda: model(**step), "reduced by a plan that starts before layer 3")
        refusal(lambda: model(**inputs, output_attentions=True), "output_attentions")
