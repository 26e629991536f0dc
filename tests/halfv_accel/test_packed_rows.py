"""Several samples in one row are refused, and no position that a model itself gives is taken for them."""

import pytest
import torch

from halfv_accel import accelerate, halfv_plan

from .miniatures import MINIATURES
from .refusing import refusal

PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=4, ssr_retention=0.1)
EVERYTHING = halfv_plan(ivr_layer=2, ivr_retention=1.0)
PACKED = "packs several samples.*a row of its own"


def has_grids(mini):
    return hasattr(mini.model().model, "get_rope_index")


def own_positions(mini, inputs):
    """What the model would make of these inputs by itself: [B, S], or [3, B, S] of time, height and width."""
    mask = inputs["attention_mask"]
    if not has_grids(mini):
        return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    grids = {name: grid for name, grid in inputs.items() if name.endswith(("grid_thw", "type_ids"))}
    return mini.model().model.get_rope_index(inputs["input_ids"], attention_mask=mask, **grids)[0]


def packed(mini, axes):
    """Two samples with a picture each in one row; `axes` 2 are positions of tokens, 3 and 4 those of grids."""
    samples = [mini.batch([mini.prompt(seed)]) for seed in range(2)]
    parts = [own_positions(mini, sample) for sample in samples]
    tokens = [torch.arange(part.shape[-1])[None] for part in parts]
    if axes == 2:
        parts = tokens
    elif axes == 4:
        parts = [torch.cat([text[None], part]) for text, part in zip(tokens, parts, strict=True)]
    token = ("input_ids", "attention_mask", "mm_token_type_ids")
    row = {name: torch.cat([sample[name] for sample in samples], dim=int(name in token)) for name in samples[0]}
    return {**row, "position_ids": torch.cat(parts, dim=-1)}


@torch.no_grad()
@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_positions_that_restart(mini, axes, use_cache, masked):
    if axes > 2 and not has_grids(mini):
        pytest.skip("positions of grids are Qwen's")
    model, row = mini.model(), packed(mini, axes)
    if not masked:
        del row["attention_mask"]
    with accelerate(model, PLAN):
        refusal(lambda: model(**row, use_cache=use_cache), PACKED)


@torch.no_grad()
def test_other_marks_of_a_packed_row(mini):
    model, row = mini.model(), packed(mini, 2)
    length = row["input_ids"].shape[1]
    del row["position_ids"]
    numbered = torch.where(torch.arange(length) < length // 2, 1, 2)[None]
    lengths = torch.tensor([0, length // 2, length], dtype=torch.int32)
    with accelerate(model, PLAN) as run:
        refusal(lambda: model(**{**row, "attention_mask": numbered}), PACKED)
        refusal(lambda: model(**row, cu_seq_lens_q=lengths, cu_seq_lens_k=lengths), "cu_seq_lens_q packs several")
        refusal(lambda: model(**row, seq_idx=numbered - 1), "seq_idx packs several")
        model(**row)  # without any mark, it is one prompt with two pictures
    assert run.last.stages


@torch.no_grad()
def test_a_packed_row_behind_one_of_its_own(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0, 2), mini.prompt(0, 2)])
    positions = torch.arange(inputs["input_ids"].shape[1]).repeat(2, 1)
    positions[1, 12:] -= 12
    with accelerate(model, PLAN):
        refusal(lambda: model(**inputs, position_ids=positions), f"row 1 of the batch {PACKED}")


@torch.no_grad()
def test_a_gap_splits_a_row_only_where_transformers_splits_it(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    positions = torch.arange(inputs["input_ids"].shape[1])[None].clone()
    positions[:, -3:] += 5
    with accelerate(model, PLAN) as run:
        model(**inputs, position_ids=positions)
        assert run.last.stages
        del inputs["attention_mask"]
        refusal(lambda: model(**inputs, position_ids=positions, use_cache=False), PACKED)


@torch.no_grad()
@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize("shapes", [[(1, 0)], [(2, 1), (1, 0), (0, 0)], [(0, 1), (2, 0)]], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_no_position_of_the_models_own_is_refused(mini, axes, shapes, side):
    """Positions stand still or jump in pictures and videos, and mean nothing in padding; the result stays the same."""
    prompts = [mini.prompt(i, n, videos=v * mini.videos) for i, (n, v) in enumerate(shapes)]
    model, inputs = mini.model(), mini.batch(prompts, side)
    positions = own_positions(mini, inputs)
    if axes == 4 and has_grids(mini):
        text = (inputs["attention_mask"].cumsum(-1) - 1).masked_fill(inputs["attention_mask"] == 0, 1)
        positions = torch.cat([text[None], positions])
    real = inputs["attention_mask"].bool()
    with accelerate(model, PLAN) as run:
        wanted = model(**inputs).logits[real]
        for pads in (None, 0, 1, 70):  # whatever a caller writes there
            given = positions if pads is None else positions.masked_fill(~real, pads)
            mine = model(**inputs, position_ids=given).logits[real]
            torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)
        if real.all():  # nothing but positions, as in scoring
            del inputs["attention_mask"]
            bare = model(**inputs, position_ids=positions, use_cache=False).logits[real]
            torch.testing.assert_close(bare, wanted, rtol=0, atol=1e-5)
    assert run.last.stages


@torch.no_grad()
def test_time_that_runs_ahead_of_the_text_is_no_restart():
    """Qwen2.5-VL places the text behind a video by its height and width, however long it lasts."""
    mini = MINIATURES["qwen2.5-vl"]
    model, inputs = mini.model(), mini.batch([mini.prompt(0, 0, videos=1)])
    inputs["second_per_grid_ts"] = torch.tensor([9.0])
    kinds = {name: inputs[name] for name in ("mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")}
    positions = model.model.get_rope_index(inputs["input_ids"], **kinds)[0]
    assert (positions[0].diff() < -1).any()
    with accelerate(model, PLAN) as run:
        wanted = model(**inputs).logits
        assert torch.equal(model(**inputs, position_ids=positions).logits, wanted)
    assert run.last.stages


@torch.no_grad()
def test_packed_text_and_a_plan_that_keeps_everything_pass(mini):
    model, row = mini.model(), packed(mini, 2)
    del row["attention_mask"]
    text = dict(input_ids=torch.arange(5, 25)[None], position_ids=torch.arange(10).repeat(2)[None])
    plain = [model(**inputs, use_cache=False).logits for inputs in (row, text)]
    with accelerate(model, EVERYTHING):
        assert torch.equal(model(**row, use_cache=False).logits, plain[0])
    with accelerate(model, PLAN):
        assert torch.equal(model(**text, use_cache=False).logits, plain[1])
