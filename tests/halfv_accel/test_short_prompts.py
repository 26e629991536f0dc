"""Prompts with few visual tokens are left alone, whatever else is in the batch."""

import dataclasses

import pytest
import torch

from halfv_accel import HalfVError, accelerate, halfv_plan
from halfv_accel.decoder import Decoder
from halfv_accel.flops import paper_flops, prefill_flops, selection_flops

PLANS = [
    halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=3, ssr_retention=0.2),
    halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=3),
]


def logits(model, inputs, plan):
    with torch.no_grad(), accelerate(model, plan) as run:
        return model(**inputs).logits, run.last


@pytest.fixture(params=PLANS, ids=["sparse", "freeze"])
def plan(request):
    return request.param


def test_a_short_prompt_is_the_untouched_models_to_the_last_bit(mini, plan):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with torch.no_grad():
        untouched = model(**inputs).logits
    tokens = int(accelerate(model, plan).family.visual_positions(inputs["input_ids"]).sum())
    found, report = logits(model, inputs, dataclasses.replace(plan, min_visual_tokens=tokens + 1))
    assert torch.equal(found, untouched)
    assert [stage.after for stage in report.stages] == [[tokens], [tokens]]
    assert not torch.equal(logits(model, inputs, dataclasses.replace(plan, min_visual_tokens=tokens))[0], untouched)


def test_each_row_of_a_batch_is_judged_by_itself(mini, plan):
    model, prompts = mini.model(), [mini.prompt(0), mini.prompt(1, 3)]
    few, many = (int(accelerate(model, plan).family.visual_positions(torch.tensor(p["ids"])).sum()) for p in prompts)
    limited = dataclasses.replace(plan, min_visual_tokens=many)
    together, report = logits(model, mini.batch(prompts), limited)
    assert few < many and report.stages[0].after[0] == few and report.stages[0].after[1] < many
    with torch.no_grad():
        untouched = model(**mini.batch(prompts[:1])).logits[0, -1]
    reduced = logits(model, mini.batch(prompts[1:]), plan)[0][0, -1]
    torch.testing.assert_close(together[:, -1], torch.stack([untouched, reduced]), rtol=1e-4, atol=1e-5)


def test_generating_goes_on_behind_a_batch_of_both_kinds(mini, plan):
    model, prompts = mini.model(), [mini.prompt(0), mini.prompt(1, 3)]
    many = int(accelerate(model, plan).family.visual_positions(torch.tensor(prompts[1]["ids"])).sum())
    limited = dataclasses.replace(plan, min_visual_tokens=many)
    options = dict(max_new_tokens=5, min_new_tokens=5, output_logits=True, return_dict_in_generate=True)
    with accelerate(model, limited):
        together = model.generate(**mini.batch(prompts), **options).logits
        alone = [model.generate(**mini.batch([prompt]), **options).logits for prompt in prompts]
    for step, found in enumerate(together):
        expected = torch.cat([row[step] for row in alone])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_flops_of_a_short_prompt_are_the_untouched_models(plan):
    decoder = Decoder(layers=6, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16)
    limited = dataclasses.replace(plan, min_visual_tokens=100)
    for count in (prefill_flops, paper_flops):
        assert count(decoder, 99, 10, limited) == count(decoder, 99, 10)
        assert count(decoder, 100, 10, limited) == count(decoder, 100, 10, plan) < count(decoder, 100, 10)
    assert selection_flops(decoder, 99, limited) == 0 < selection_flops(decoder, 100, limited)


@pytest.mark.parametrize("least", [-1, 1.5, True, "many"])
def test_a_limit_is_a_whole_number(least):
    with pytest.raises(HalfVError, match="min_visual_tokens"):
        halfv_plan(ivr_layer=1, ivr_retention=0.5, min_visual_tokens=least)
