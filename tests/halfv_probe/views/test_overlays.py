"""Pictures of kept tokens: never on the wrong patch, and only where the patch is known."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_vlm
from halfv_accel import HalfVError, accelerate, load_model
from halfv_accel.adapters import family_of
from halfv_accel.profile import IVR, model_info
from halfv_accel.prompts import chat_inputs
from halfv_data import load_samples
from halfv_probe.measures.capture import watch_boundaries
from halfv_probe.views.report.overlays import locate, main_plane, map_tokens
from halfv_probe.views.report.token_pictures import given_picture, kept_picture
from tests.halfv_accel.hub import HUB

from .profiles import made_up

GRIDS = {"LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"}
GRIDS |= {"Qwen3VLForConditionalGeneration"}


@pytest.fixture(scope="module", params=tiny_vlm.NAMES)
def tiny(request):
    return load_model(tiny_vlm.checkpoint(request.param))


@pytest.fixture(scope="module")
def samples():
    return load_samples("default", 2, seed=0)


def profile_of(model, mode="sparse", ivr=3, ssr=6):
    profile = made_up(10, ivr, ssr, mode)
    return profile.model_copy(update={"model": model_info(model, "tiny")})


def first_visual_states(model, processor, image):
    """What the decoder gets for each visual token."""
    family, seen = family_of(model), []
    inputs = chat_inputs(processor, [image], "What is this?")
    with torch.no_grad(), watch_boundaries(family.layers, lambda layer, states: layer or seen.append(states[0])):
        model(**inputs)
    return seen[0][family.visual_positions(inputs["input_ids"])[0]].float()


@pytest.fixture(scope="module", params=HUB)
def case(request, tmp_path_factory):
    """Architecture, model and processor; the vision tower's attention adds nothing, so patches do not mix."""
    model, processor = load_model(HUB[request.param].save(tmp_path_factory.mktemp("hub") / "model"))
    for name, parameter in model.named_parameters():
        if ".attn.proj." in name or (".self_attn.out_proj." in name and "vision" in name):
            parameter.data.zero_()
    return request.param, model, processor


def gradient(width, height):
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).round().astype(np.uint8))


def place(model, processor, image):
    """What `locate` finds for a picture, and how many visual tokens it has."""
    inputs = chat_inputs(processor, [image], "What is this?")
    count = int(family_of(model).visual_positions(inputs["input_ids"]).sum())
    return *locate(family_of(model), processor, inputs, image, count), count, inputs


def test_only_families_with_a_certain_geometry_get_an_overlay(case):
    architecture, model, processor = case
    seen, grid, count, inputs = place(model, processor, gradient(130, 90))
    assert (grid is not None) == (seen is not None) == (architecture in GRIDS)
    if grid is not None:
        assert grid[0] * grid[1] == count
        other = locate(family_of(model), processor, inputs, gradient(130, 90), count + 1)  # a class token, say
        assert other == (None, None)


def test_a_token_changes_where_its_own_patch_is_painted_over_and_only_there(case):
    """The law behind every overlay, asked of the model itself."""
    _, model, processor = case
    seen, grid, count, _ = place(model, processor, gradient(130, 90))
    if grid is None:
        return
    rows, columns = grid
    vision = model.config.vision_config
    side = vision.patch_size * getattr(vision, "spatial_merge_size", 1)  # no pixel is interpolated then
    picture = seen.resize((columns * side, rows * side))
    assert place(model, processor, picture)[1] == grid
    before = first_visual_states(model, processor, picture)
    for token in {0, columns - 1, columns, count // 2, count - 1}:
        row, column = divmod(token, columns)
        painted = np.array(picture)
        patch = painted[row * side : (row + 1) * side, column * side : (column + 1) * side]
        patch[:] = 255 - patch
        after = first_visual_states(model, processor, Image.fromarray(painted))
        assert (after != before).any(dim=1).nonzero().flatten().tolist() == [token]


def test_what_llava_crops_away_has_no_token(case):
    architecture, model, processor = case
    if architecture == "LlavaForConditionalGeneration":
        seen = place(model, processor, gradient(130, 90))[0]
        side = seen.width
        scaled = gradient(130, 90).resize((round(130 * side / 90), side), Image.Resampling.BICUBIC)
        left = (scaled.width - side) // 2
        cropped = np.asarray(scaled.crop((left, 0, left + side, side)), dtype=float)
        assert np.abs(np.asarray(seen, dtype=float) - cropped).max() < 6


@pytest.mark.parametrize("mode", ["sparse", "freeze", "none"])
def test_maps_show_what_the_accelerator_keeps(tiny, samples, mode):
    model, processor = tiny
    profile = profile_of(model, mode)
    for sample, tokens in zip(samples, map_tokens(model, processor, samples, profile), strict=True):
        inputs = chat_inputs(processor, [sample.image], sample.question)
        with torch.no_grad(), accelerate(model, profile) as run:
            model(**inputs)
        visual = family_of(model).visual_positions(inputs["input_ids"])[0]
        assert [(stage.name, stage.layer, stage.then) for stage in tokens.stages] == [
            (stage.name, stage.layer, stage.then) for stage in run.last.stages
        ]
        for stage, kept in zip(tokens.stages, run.last.kept, strict=True):
            assert stage.kept.tolist() == kept[0][visual].tolist()
        budget = int(tokens.stages[0].kept.sum())
        assert tokens.anchors.sum() == int(budget * profile.ivr.anchor_ratio + 1e-9)
        assert not (tokens.anchors & ~tokens.stages[0].kept).any()
        assert tokens.plane.shape == (144, 2) and 0 < tokens.explained <= 1


def test_where_all_is_kept_there_is_no_plane(tiny, samples):
    model, processor = tiny
    profile = profile_of(model, "freeze")
    profile = profile.model_copy(update={"ivr": IVR(layer=3, retention=1.0, anchor_ratio=0.1)})
    tokens = map_tokens(model, processor, samples[:1], profile)[0]
    assert tokens.plane is None and not tokens.anchors.any() and tokens.stages[0].kept.all()


def test_another_model_is_refused(tiny, samples):
    model, processor = tiny
    with pytest.raises(HalfVError, match="halfv calibrate"):
        map_tokens(model, processor, samples, made_up())


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)), dtype=int)


def test_kept_patches_show_the_picture_and_dropped_ones_do_not(tiny, samples):
    model, processor = tiny
    tokens = map_tokens(model, processor, samples[:1], profile_of(model))[0]
    for place, stage in enumerate(tokens.stages):
        given, shown = pixels(given_picture(tokens)), pixels(kept_picture(tokens, place))
        rows, columns = tokens.grid
        cell = given.shape[0] // rows
        assert given.shape == shown.shape == (rows * cell, columns * cell, 3)
        for token, kept in enumerate(stage.kept):
            row, column = divmod(token, columns)
            middle = np.s_[row * cell + cell // 3 : (row + 1) * cell - cell // 3, :][0]
            inner = (middle, slice(column * cell + cell // 3, (column + 1) * cell - cell // 3))
            assert (given[inner] == shown[inner]).all() == kept
            if not kept:
                assert np.ptp(shown[inner], axis=-1).max() <= 1  # grey


def test_a_strip_has_a_cell_for_every_token(tiny, samples):
    model, processor = tiny
    tokens = replace(map_tokens(model, processor, samples[:1], profile_of(model))[0], image=None, grid=None)
    shown = pixels(kept_picture(tokens, 0))
    blue = (shown == (40, 90, 150)).all(axis=-1)
    assert 0.15 < blue.mean() < 0.25  # a quarter of the tokens, less their frames


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (40, 5), (30, 64)])
def test_plane_is_the_one_of_a_full_decomposition(shape):
    states = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(1, -2, shape[1])
    plane, explained = main_plane(states)
    centred = (states - states.mean(0)).double()
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    expected = np.zeros((shape[0], 2))
    full = (left * values)[:, :2].numpy()
    expected[:, : full.shape[1]] = full
    assert np.abs(plane) == pytest.approx(np.abs(expected), abs=1e-4)
    total = float((values**2).sum())
    assert explained == pytest.approx(float((values[:2] ** 2).sum()) / total if total > 1e-20 else 1.0)


def test_every_family_has_its_kept_tokens_drawn(case, samples):
    architecture, model, processor = case
    profile = made_up(4, 1, 2).model_copy(update={"model": model_info(model, "tiny")})
    tokens = map_tokens(model, processor, samples[:1], profile)[0]
    assert (tokens.grid is not None) == (architecture in GRIDS)
    assert kept_picture(tokens, 1).startswith(b"\x89PNG")
    assert [len(stage.kept) for stage in tokens.stages] == [len(tokens.anchors)] * 2
    assert len(tokens.frame()) == len(tokens.anchors)
