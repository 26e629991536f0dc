"""Architectures have the sizes of the models that they are named after, and prompts the tokens that were asked for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import HalfVError
from halfv_accel.adapters import FAMILIES
from halfv_accel.architectures import middling
from halfv_accel.bench import build, build_prompt
from halfv_accel.bench.prompts import _packings, best_side, near_square, ragged_sizes
from halfv_accel.bench.random_weights import assemble
from halfv_accel.names import MODELS, architecture

from .miniatures import MINIATURES

# Parameters of the published checkpoints, in thousand millions.
PUBLISHED = {
    "llava-1.5-7b": 7.06,
    "llava-1.5-13b": 13.35,
    "llava-next-mistral-7b": 7.57,
    "qwen2.5-vl-7b": 8.29,
    "qwen2-vl-7b": 8.29,
    "qwen3-vl-4b": 4.44,
}
REACHABLE = [name for name in MINIATURES if name != "video-llava"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_architectures_have_as_many_parameters_as_the_checkpoints(name):
    model = build(name, "meta", torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert type(model).__name__ in FAMILIES


def test_the_middling_model_is_twelve_layers_of_1024():
    text = architecture("mid").text_config
    assert (text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (1024, 12, 2816)
    assert (text.num_attention_heads, text.head_dim) == (16, 64)
    assert {name for name, known in MODELS.items() if known.config} == {*PUBLISHED, "mid"}


def test_the_picture_s_side_changes_the_tower_and_nothing_else():
    models = {side: build("llava-1.5-7b", "meta", torch.bfloat16, side=side) for side in (None, 28)}
    shapes = {side: {name: p.shape for name, p in model.named_parameters()} for side, model in models.items()}
    (changed,) = (name for name in shapes[None] if shapes[None][name] != shapes[28][name])
    assert "position_embedding" in changed
    assert models[28].config.vision_config.image_size == 28 * 14
    assert build("qwen3-vl-4b", "meta", torch.bfloat16, side=28).config.vision_config.patch_size == 16


def test_random_weights_are_small_finite_and_repeatable():
    models = [assemble(middling(64, 2, 4), seed=seed) for seed in (3, 3, 4)]
    for name, parameter in models[0].named_parameters():
        assert parameter.isfinite().all()
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
        elif "language_model" in name:
            assert 0 < parameter.std() < 0.1, name
    first, same, other = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    logits = models[0](**build_prompt(models[0], 32, 6).inputs).logits
    assert logits.isfinite().all() and not models[0].training


@pytest.mark.parametrize("name", REACHABLE)
@pytest.mark.parametrize("batch", [1, 3])
def test_prompts_hold_the_tokens_that_they_tell(name, batch):
    model = MINIATURES[name].model()
    prompt = build_prompt(model, 100, 9, batch)
    ids, mask = prompt.inputs["input_ids"], prompt.inputs["attention_mask"]
    visual = ids == model.config.image_token_id
    assert mask.all()
    assert visual.sum(1).tolist() == prompt.visual == [100] * batch  # every family can have this number
    assert (~visual).sum(1).tolist() == prompt.text == [9] * batch
    for row in visual:
        places = row.nonzero()[:, 0]
        before, behind = int(places[0]), ids.shape[1] - 1 - int(places[-1])
        assert before + behind == 9 and abs(before - behind) <= 1
    assert len({tuple(row[~v].tolist()) for row, v in zip(ids, visual, strict=True)}) == batch  # rows differ
    assert torch.equal(build_prompt(model, 100, 9, batch).inputs["pixel_values"], prompt.inputs["pixel_values"])


@pytest.mark.parametrize("name", REACHABLE)
def test_ragged_rows_are_padded_on_the_left(name):
    model = MINIATURES[name].model()
    prompt = build_prompt(model, 100, 9, batch=3, ragged=True)
    ids, mask = prompt.inputs["input_ids"], prompt.inputs["attention_mask"].bool()
    if "next" not in name:
        assert prompt.visual == [100, 75, 50]
    assert prompt.visual == sorted(prompt.visual, reverse=True) and prompt.visual[-1] < 100
    assert mask.sum(1).tolist() == [v + t for v, t in zip(prompt.visual, prompt.text, strict=True)]
    assert prompt.text == [9] * 3
    for row, (tokens, real) in enumerate(zip(ids, mask, strict=True)):
        assert real.tolist() == sorted(real.tolist())
        assert int((tokens[real] == model.config.image_token_id).sum()) == prompt.visual[row]
        assert model.config.image_token_id not in tokens[~real]
    with torch.no_grad():
        assert model(**prompt.inputs).logits.isfinite().all()  # pictures and placeholders agree in number


def test_the_paper_s_numbers_can_be_had():
    assert 2352 in _packings(build("llava-next-7b", "meta", torch.bfloat16))
    for visual, side, pictures in ((2352, 28, 3), (1200, 20, 3), (576, 24, 1)):
        assert best_side(visual) == side and pictures * side**2 == visual


@given(st.integers(1, 5000))
def test_the_best_side_misses_by_little(visual):
    side = best_side(visual)
    pictures = max(1, round(visual / side**2))
    assert abs(pictures * side**2 - visual) <= max(1, 0.12 * visual)
    assert side >= math.isqrt(visual) // 2 or side >= 16


@given(st.integers(1, 3000))
def test_near_square_is_the_squarest_of_all_rectangles(cells):
    best = max(h for h in range(1, cells + 1) if h * h <= cells and cells % h == 0)
    assert near_square(cells) == (best, cells // best)


@given(st.integers(1, 3000), st.integers(1, 9))
def test_ragged_sizes_go_from_all_to_half(most, batch):
    sizes = ragged_sizes(most, batch)
    assert len(sizes) == batch and sizes[0] == most and sizes == sorted(sizes, reverse=True)
    assert batch == 1 or sizes[-1] == math.ceil(most / 2)


@pytest.mark.parametrize(("visual", "text", "batch"), [(0, 9, 1), (10, 3, 1), (10, 9, 0)])
def test_prompts_of_nothing_are_refused(visual, text, batch):
    with pytest.raises(HalfVError, match="give at least"):
        build_prompt(MINIATURES["llava"].model(), visual, text, batch)
