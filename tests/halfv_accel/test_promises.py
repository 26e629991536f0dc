"""The promises of docs/design.md: keeping everything changes nothing, shapes stay, rows and gradients are their own."""

import copy

import pytest
import torch
from transformers import DynamicCache

from halfv_accel import accelerate, halfv_plan

from .miniatures import IMAGE, VIDEO

PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=4, ssr_retention=0.1)
EVERYTHING = halfv_plan(ivr_layer=1, ivr_retention=1.0, ssr_mode="sparse", ssr_layer=3, ssr_retention=1.0)


@pytest.mark.parametrize("shapes", [[1], [1, 2], [1, 0]])
def test_keeping_everything_is_bit_exact(mini, attention, shapes):
    model, inputs = mini.model(attention), mini.batch([mini.prompt(i, n) for i, n in enumerate(shapes)])
    options = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        plain, plain_out = model(**inputs).logits, model.generate(**inputs, **options)
        with accelerate(model, EVERYTHING) as run:
            assert torch.equal(model(**inputs).logits, plain)
            out = model.generate(**inputs, **options)
    assert torch.equal(out.sequences, plain_out.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain_out.logits, strict=True))
    assert [stage.after for stage in run.last.stages] == [run.last.visual_tokens] * 2


def test_text_only_passes_through(mini, attention):
    model, inputs = mini.model(attention), mini.batch([mini.prompt(0, 0), mini.prompt(1, 0, 9)])
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with accelerate(model, PLAN) as run:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), plain)
    assert run.last.visual_tokens == [0, 0]
    assert run.last.stages == []


@torch.no_grad()
def test_a_placeholder_without_features_is_text(mini):
    """An id that stands for videos, in a prompt with a picture only, is what it is for transformers: a word."""
    model, prompt = mini.model(), mini.prompt(0)
    stray = {**prompt, "ids": [VIDEO, *prompt["ids"]]}
    inputs = mini.batch([stray])
    if "mm_token_type_ids" in inputs:  # as a processor would have it
        inputs["mm_token_type_ids"][0, 0] = 0
    with accelerate(model, PLAN) as run:
        model(**inputs)
    assert run.last.visual_tokens == [prompt["ids"].count(IMAGE)]
    assert not run.last.kept[0][0, 0]


@torch.no_grad()
def test_a_generated_placeholder_is_text(mini):
    """A model can generate the id that stands for a picture; without features it is a token like any other."""
    model = mini.model()
    with accelerate(model, PLAN):
        out = model(**mini.batch([mini.prompt(0)]))
        step = model(input_ids=torch.tensor([[1]]), past_key_values=out.past_key_values)
    assert step.logits.shape[:2] == (1, 1)


@torch.no_grad()
@pytest.mark.parametrize("capture_first", [True, False])
def test_hidden_states_and_logits_keep_their_shapes(mini, capture_first):
    model, inputs = copy.deepcopy(mini.model()), mini.batch([mini.prompt(0), mini.prompt(1, 2)])
    if capture_first:
        model(**inputs, output_hidden_states=True)
    plain = model(**inputs)
    with accelerate(model, PLAN):
        out = model(**inputs, output_hidden_states=True)
        assert model(**inputs, logits_to_keep=1).logits.shape[1] == 1
    assert out.logits.shape == plain.logits.shape
    assert {state.shape[1] for state in out.hidden_states} == {inputs["input_ids"].shape[1]}


@torch.no_grad()
def test_the_cache_shrinks_and_layer_0_does_not(mini):
    model, prompt = mini.model(), mini.prompt(0)
    inputs = mini.batch([prompt])
    total = len(prompt["ids"])
    for cache in (None, DynamicCache(), DynamicCache(config=model.config)):
        with accelerate(model, PLAN) as run:
            cache = model(**inputs, past_key_values=cache).past_key_values
        lengths = [layer.keys.shape[-2] for layer in cache.layers]
        visual, (ivr, ssr) = run.last.visual_tokens[0], run.last.stages
        assert lengths == [total] * 2 + [total - visual + ivr.after[0]] * 2 + [total - visual + ssr.after[0]] * 2
        assert {cache.get_seq_length(layer) for layer in range(6)} == {total}  # what the caller knows


@torch.no_grad()
def test_frozen_tokens_stay_attended_and_stop_changing(mini):
    model, prompt = mini.model(), mini.prompt(0)
    plan = halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=4)
    with accelerate(model, plan) as run:
        out = model(**mini.batch([prompt]), output_hidden_states=True)
    frozen, alive = run.last.stages[1], run.last.kept[0]
    assert (frozen.then, frozen.after, frozen.before) == ("freeze", [0], run.last.stages[0].after)
    assert torch.equal(out.hidden_states[4][alive], out.hidden_states[5][alive])
    length = len(prompt["ids"]) - run.last.visual_tokens[0] + frozen.before[0]
    assert out.past_key_values.layers[5].keys.shape[-2] == length


@torch.no_grad()
def test_the_report_counts_what_the_masks_show(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0), mini.prompt(1, 2), mini.prompt(2, 0)])
    with accelerate(model, PLAN) as run:
        model(**inputs)
    assert run.last.visual_tokens == (inputs["input_ids"] == 1).sum(1).tolist()
    for stage, kept in zip(run.last.stages, run.last.kept, strict=True):
        assert kept.shape == inputs["input_ids"].shape
        assert kept.sum(1).tolist() == stage.after
        assert not (kept & (inputs["input_ids"] != 1)).any()
        assert stage.selection_ms >= 0


@torch.no_grad()
def test_rows_do_not_see_each_other(mini):
    """A row of a ragged batch chooses what it chooses alone."""
    model, prompts = mini.model(), [mini.prompt(0), mini.prompt(1, 2)]
    width = max(len(prompt["ids"]) for prompt in prompts)
    with accelerate(model, PLAN) as run:
        model(**mini.batch(prompts))
        together = run.last.kept
        for row, prompt in enumerate(prompts):
            model(**mini.batch([prompt]))
            for stage, kept in enumerate(run.last.kept):
                assert torch.equal(together[stage][row, width - len(prompt["ids"]) :], kept[0])


def test_gradients_flow(mini):
    model, inputs = copy.deepcopy(mini.model()), mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN):
        model(**inputs).logits[:, -1].sum().backward()
    assert model.model.language_model.layers[5].mlp.up_proj.weight.grad.abs().sum() > 0
