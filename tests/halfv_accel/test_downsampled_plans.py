"""What plans that shrink pictures do: answers, counts, and benchmarks."""

import math
from dataclasses import replace

import pytest
import torch

from halfv_accel import Downsample, Plan, Stage, accelerate, chat_inputs, paper_flops, prefill_flops, shrink_pictures
from halfv_accel.answer_many import answer_many
from halfv_accel.answers import answer
from halfv_accel.bench import build_prompt, compare
from halfv_accel.bench.measure import variants
from halfv_accel.bench.prompts import shrink_prompt
from halfv_accel.catalogue import catalogue
from halfv_accel.flops import selection_flops
from halfv_accel.names import architecture
from halfv_accel.plan_text import parse_plan
from halfv_accel.prompts import batch_inputs
from halfv_accel.selfcheck import selfcheck
from halfv_accel.selfcheck.__main__ import random_prompts
from halfv_data import scenes

from .refusing import refusal
from .test_answer_many import Asked
from .test_downsample import SHRINKING, all_grids

SAMPLES = list(scenes(3, seed=0))
STAGED = Plan((Stage("ivr", 2, "anchor_cover", 0.5),), downsample=Downsample(0.5))


def test_stages_count_from_what_is_left(wide):
    for name in SHRINKING:
        model, processor = wide(name)
        images = [SAMPLES[0].image.resize((320, 256))]
        inputs = chat_inputs(processor, images, "Where?", downsample=STAGED.downsample)
        [left] = shrink_pictures(processor, [images], STAGED.downsample).after
        with accelerate(model, STAGED.inside) as run:
            model(**inputs)
        assert run.last.visual_tokens == [left]
        assert run.last.stages[0].after == [left // 2]


def test_a_plan_that_only_shrinks_leaves_the_model_as_it_is(wide):
    model, processor = wide("Qwen2_5_VLForConditionalGeneration")
    plan = parse_plan("downsample::0.25")
    turns = [([SAMPLES[0].image], "Where?"), ([SAMPLES[1].image] * 2, "Which one is it?"), ([], "Why?")]
    inputs = batch_inputs(processor, turns, downsample=plan.downsample)
    plain = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with accelerate(model, plan.inside) as run:
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), plain)
    assert run.last.visual_tokens == (inputs["input_ids"] == processor.image_token_id).sum(1).tolist()
    assert run.last.average_visual_tokens == run.last.visual_tokens


def test_an_answer_counts_from_the_pictures_as_they_are(wide):
    model, processor = wide("Qwen2_5_VLForConditionalGeneration")
    images = [SAMPLES[0].image]
    whole, inputs = (chat_inputs(processor, images, "Where?", downsample=each) for each in (None, STAGED.downsample))
    refusal(lambda: answer(model, processor, inputs, STAGED), "as whole")
    result = answer(model, processor, inputs, STAGED, max_new_tokens=3, compare=True, whole=whole)
    before, after = ((each["input_ids"] == processor.image_token_id).sum().item() for each in (whole, inputs))
    assert (result.visual_tokens, result.downsampled_to, result.stages[0].after) == (before, after, after // 2)
    text = whole["input_ids"].shape[1] - before
    untouched = prefill_flops(model.config, before, text)
    assert result.flops_ratio == prefill_flops(model.config, after, text, STAGED.inside) / untouched
    ids = model.generate(**whole, max_new_tokens=3, do_sample=False)[0, whole["input_ids"].shape[1] :]
    assert result.untouched.text == processor.decode(ids, skip_special_tokens=True).strip()


def test_many_answers_are_those_of_each_alone(wide):
    model, processor = wide("Qwen2_5_VLForConditionalGeneration")
    asked = [Asked("Where?", [SAMPLES[0].image]), Asked("Why is it so?", []), Asked("What?", [SAMPLES[1].image] * 2)]
    asked.append(Asked("When?", [], [SAMPLES[2].image] * 4))
    with accelerate(model, STAGED.inside) as run:
        [replies] = answer_many(run, processor, asked, 4, 3, STAGED.downsample)
    for each, reply in zip(asked[:3], replies, strict=False):
        whole, inputs = (
            chat_inputs(processor, each.images, each.question, downsample=by) for by in (None, STAGED.downsample)
        )
        alone = answer(model, processor, inputs, STAGED, 3, whole=whole)
        assert (reply.text, reply.visual_tokens, reply.downsampled_to) == (
            alone.text,
            alone.visual_tokens,
            alone.downsampled_to,
        )
    assert "video" in replies[3].error


@pytest.mark.parametrize("wanted", [Downsample(0.25), Downsample(tokens=100)])
def test_flops_are_those_of_fewer_tokens(wanted):
    config = architecture("qwen2.5-vl-7b")
    plan = replace(parse_plan("fastv:2:0.5"), downsample=wanted)
    left = wanted.most(800)
    for count in (prefill_flops, paper_flops):
        assert count(config, 800, 50, plan) == count(config, left, 50, plan.inside)
        only = Plan((), downsample=wanted)
        assert count(config, 800, 50, only) == count(config, left, 50)
    assert selection_flops(config, 800, plan) == selection_flops(config, left, plan.inside)


def test_the_catalogue_names_it():
    there, [row] = (
        [row for row in catalogue(architecture(n)) if row["name"] == "downsample"]
        for n in ("llava-1.5-7b", "qwen2.5-vl-7b")
    )
    assert row["where"] == "the picture" and "VTC-Bench" in row["source"]
    assert "LLaVA" not in row["families"]
    assert parse_plan(row["plan"]) == parse_plan("downsample")
    assert there == [row | {"plan": ""}]


# ------------------------------------------------------------------------------------------------------ benchmarks


@pytest.mark.parametrize("architecture", SHRINKING)
def test_bench_prompts_get_a_smaller_grid_and_keep_their_text(wide, architecture):
    model, _ = wide(architecture)
    prompt = build_prompt(model, 60, 9, batch=3, ragged=True)
    shrunk = shrink_prompt(model, prompt, Downsample(0.25))
    assert shrunk.text == prompt.text == [9, 9, 9]
    for row, (was, now) in enumerate(zip(prompt.visual, shrunk.visual, strict=True)):
        rows, columns = (side // 2 for side in prompt.inputs["image_grid_thw"][row, 1:].tolist())
        assert now == math.prod(all_grids(rows, columns, was // 4)) <= was // 4
    assert len(shrunk.inputs["pixel_values"]) == 4 * sum(shrunk.visual)
    assert model(**shrunk.inputs).logits.isfinite().all()


def test_bench_runs_the_untouched_model_on_pictures_as_they_are(wide):
    model, _ = wide("Qwen2VLForConditionalGeneration")
    prompt = build_prompt(model, 64, 9)
    found = compare(model, STAGED, prompt, new_tokens=2, rounds=1)
    assert (found.visual_tokens, found.downsampled_to) == ([64], [30])
    assert "64 visual (downsampled: 30)" in found.headline
    by_name = {each.name: each for each in found.variants}
    assert by_name["accelerated"].plan == "downsample::0.5,ivr:2:0.5:0.1"
    assert by_name["untouched"].flops.exact == prefill_flops(model.config, 64, 9) == by_name["keep all"].flops.exact
    assert by_name["accelerated"].flops.exact == prefill_flops(model.config, 30, 9, STAGED.inside)
    only = compare(model, Plan((), downsample=Downsample(0.25)), prompt, new_tokens=2, rounds=1)
    assert [each.name for each in only.variants] == ["untouched", "accelerated", "with block"]
    assert [each.flops.exact for each in only.variants][1:] == [prefill_flops(model.config, 16, 9)] * 2


def test_other_choices_stand_on_the_same_small_pictures():
    found = variants(STAGED)
    assert found["keep all"].downsample is None
    assert {found[name].downsample for name in ("accelerated", "with block", "FastV-style", "random")} == {
        STAGED.downsample
    }


def test_a_checkpoint_is_checked_on_small_pictures(wide):
    _, processor = wide("Qwen2VLForConditionalGeneration")
    whole, small = (random_prompts(processor, downsample=each) for each in (None, Downsample(0.5)))
    for was, now in zip(whole, small, strict=True):
        assert (now["image_grid_thw"].prod(1) <= was["image_grid_thw"].prod(1) // 2).all()


def test_a_checkpoint_is_not_checked_where_nothing_is_done_to_it(wide):
    model, processor = wide("Qwen2VLForConditionalGeneration")
    plan = parse_plan("downsample::0.5")
    refusal(lambda: selfcheck(model, *random_prompts(processor), plan=plan.inside), "nothing to check")
    refusal(lambda: selfcheck(model, *random_prompts(processor), plan=STAGED), "plan.inside")
