"""Vision measures against NumPy's singular values and against the maps that the eager towers themselves compute."""

import copy
import math
import sys

import numpy as np
import pytest
import torch

from halfv_accel import HalfVError
from halfv_probe.measures import vision as module
from halfv_probe.measures.vision import vision_attention, vision_effective_rank
from tests.halfv_accel.miniatures import IMAGE, MINIATURES, VIDEO


def batches(mini):
    yield mini.batch([mini.prompt(0)])
    yield mini.batch([mini.prompt(1, 2), mini.prompt(2, 1, 9, videos=int(mini.videos))])
    yield mini.batch([mini.prompt(1, 2), mini.prompt(2, 1, 9)], side="right")


def entropy(weights):
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights if w > 0)


@torch.no_grad()
def test_effective_rank_counts_singular_values(mini):
    for inputs in batches(mini):
        states = mini.model("eager")(**inputs, output_hidden_states=True).hidden_states[0]
        measured = vision_effective_rank(mini.model(), inputs)
        for row, (ids, rank) in enumerate(zip(inputs["input_ids"], measured.tolist(), strict=True)):
            visual = (ids == IMAGE) | ((ids == VIDEO) & mini.videos)
            singular = np.linalg.svd(states[row, visual].double().numpy(), compute_uv=False)
            assert rank == pytest.approx(math.exp(entropy(singular.tolist())), rel=1e-4)
            assert 1 <= rank <= min(visual.sum(), states.shape[-1])


def tower_maps(mini, inputs, monkeypatch):
    """Head-mean maps [n, n] of the penultimate layer, one for each call of each row of the eager kernel."""
    model, maps = mini.model("eager"), []
    towers = [getattr(model.model, name, None) for name in module.TOWERS]
    layers = [getattr(tower, "blocks", None) or tower.encoder.layers for tower in towers if tower is not None]
    watched = [getattr(stack[-2], "attn", None) or stack[-2].self_attn for stack in layers]
    source = sys.modules[type(watched[0]).__module__]
    own = source.eager_attention_forward

    def watching(attention, *args, **kwargs):
        output, weights = own(attention, *args, **kwargs)
        if any(attention is one for one in watched):
            maps.extend(weights.double().mean(dim=1))
        return output, weights

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(source, "eager_attention_forward", watching)
        model(**inputs)
    return maps


def slow_entropies(maps, inputs):
    """Entropy of each view, from its map or from the maps of its windows."""
    frames = []
    for grid in ("image_grid_thw", "video_grid_thw"):
        for frame_count, rows, columns in inputs[grid].tolist() if grid in inputs else []:
            frames += [rows * columns] * frame_count
    if not frames:
        return [entropy(weights[0, 1:].tolist()) for weights in maps]  # the class token's row, without itself
    windows = [[sum(column) for column in zip(*weights.tolist(), strict=True)] for weights in maps]
    entropies = []
    for patches in frames:
        received = []
        while len(received) < patches:
            received += windows.pop(0)
        assert len(received) == patches
        entropies.append(entropy(received))
    assert not windows
    return entropies


@pytest.mark.parametrize("entries", [1, 2**24])
def test_attention_entropy_is_that_of_the_towers_own_maps(mini, monkeypatch, entries):
    monkeypatch.setattr(module, "ENTRIES", entries)
    for inputs in batches(mini):
        measured = vision_attention(mini.model(), inputs)
        expected = slow_entropies(tower_maps(mini, inputs, monkeypatch), inputs)
        assert measured.entropy.tolist() == pytest.approx(expected, rel=1e-5)
        assert measured.measured == ("received" if "image_grid_thw" in inputs else "class token")


def test_the_model_comes_out_as_it_went_in(mini, untouched, breaking):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    for measure in (vision_effective_rank, vision_attention):
        with untouched(model):
            measure(model, inputs)
        with breaking(model), untouched(model), pytest.raises(RuntimeError, match="broken"):
            measure(model, inputs)


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
def test_towers_of_another_form_are_refused(name, untouched):
    mini = MINIATURES[name]
    model, inputs = copy.deepcopy(mini.model()), mini.batch([mini.prompt(0)])
    if name == "llava":
        del model.model.vision_tower.embeddings.class_embedding
    else:
        del model.model.visual.blocks[-2].attn.qkv
    with untouched(model), pytest.raises(HalfVError, match=r"cannot be measured.*neither a class token"):
        vision_attention(model, inputs)
    one_layer = copy.deepcopy(mini.model())
    stack = one_layer.model.vision_tower.encoder.layers if name == "llava" else one_layer.model.visual.blocks
    del stack[1]
    with pytest.raises(HalfVError, match="cannot be measured"):
        vision_attention(one_layer, inputs)


def test_a_model_without_a_tower_is_refused():
    mini = MINIATURES["llava"]
    model = copy.deepcopy(mini.model())
    model.model.eyes = model.model.vision_tower
    del model.model.vision_tower
    with pytest.raises(HalfVError, match="no vision tower"):
        vision_attention(model, mini.batch([mini.prompt(0)]))
