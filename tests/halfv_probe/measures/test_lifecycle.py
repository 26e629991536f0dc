"""Entropy curves of whole models against a slow NumPy reading of the model's own hidden states."""

import json

import numpy as np
import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.prompts import batch_inputs
from halfv_data import scenes
from halfv_probe.measures.lifecycle import (
    GROUPS,
    SampleSpectra,
    boundary_spectra,
    in_batches,
    leading,
    lifecycle_of,
    measure_lifecycle,
)
from tiny_vlm.llava import TinyLlava
from tiny_vlm.qwen import TinyQwen


@pytest.fixture(scope="module", params=[TinyQwen, TinyLlava], ids=["qwen2.5-vl", "llava"])
def case(request):
    """A model, two prompts of different lengths alone, and both as a batch."""
    torch.manual_seed(0)
    family = request.param()
    model, processor = family.build().eval(), family.processor()
    turns = [([sample.image], sample.question) for sample in scenes(2, seed=0)]
    singles = [batch_inputs(processor, [turn]) for turn in turns]
    return model, singles, batch_inputs(processor, turns)


def slow_entropy(states, k, reference):
    states = np.asarray(states, dtype=np.float64)
    if reference:
        states = states - states.mean(axis=0)
    weights = np.linalg.svd(states, compute_uv=False) ** 2
    p = weights[:k] / weights[:k].sum()
    return -(p * np.log(np.where(p > 0, p, 1))).sum()


def listened(model, inputs, modules, heard):
    """Run the model; first rows of what the modules get are heard in order."""

    def hook(_module, args):
        heard.append(args[0][0])

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
def test_curves_equal_a_slow_reading_of_the_hidden_states(case, fidelity):
    model, singles, _ = case
    text = model.model.language_model
    found = measure_lifecycle(model, singles, fidelity, k=7)
    expected = {group: [] for group in GROUPS}
    for inputs in singles:
        boundaries = []
        with torch.no_grad():
            listened(model, inputs, [*text.layers, text.norm], boundaries)
            rows = [text.norm(states) if fidelity == "reference" else states for states in boundaries]
        visual = (inputs["input_ids"][0] == model.config.image_token_id).numpy()
        masks = {"visual": visual, "text": ~visual, "all": visual | True}
        for group, mask in masks.items():
            expected[group].append([slow_entropy(states[mask], 7, fidelity == "reference") for states in rows])
    for group in GROUPS:
        np.testing.assert_allclose(found.entropy[group], np.mean(expected[group], axis=0), rtol=1e-6)
        np.testing.assert_allclose(found.entropy_std[group], np.std(expected[group], axis=0), atol=1e-6)
        np.testing.assert_allclose(found.samples_entropy[group], expected[group], rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(case, side):
    model, singles, batch = case
    if side == "right":
        batch = {**batch, "input_ids": batch["input_ids"].clone()}
        mask = batch["attention_mask"].clone()
        for row, real in enumerate(mask.sum(dim=1).tolist()):
            batch["input_ids"][row] = batch["input_ids"][row].roll(real - mask.shape[1])
            mask[row] = (torch.arange(mask.shape[1]) < real).long()
        batch["attention_mask"] = mask
        batch.pop("mm_token_type_ids", None)
        if "image_grid_thw" in batch:  # Qwen's positions need to know which tokens are visual
            kinds = (batch["input_ids"] == model.config.image_token_id).long()
            batch["mm_token_type_ids"] = kinds
    alone = [boundary_spectra(model, inputs)[0] for inputs in singles]
    for one, other in zip(alone, boundary_spectra(model, batch), strict=True):
        assert one.rank == other.rank
        for group in GROUPS:
            np.testing.assert_allclose(other.trace[group], one.trace[group], rtol=1e-4)
            k = min(8, one.rank[group])
            np.testing.assert_allclose(other.values[group][:, :k], one.values[group][:, :k], rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(other.curvature, one.curvature, rtol=1e-3)


def test_json_gives_the_same_numbers_back(case):
    sample = boundary_spectra(case[0], case[1][0])[0]
    again = SampleSpectra.from_json(json.loads(json.dumps(sample.to_json())))
    assert again.rank == sample.rank
    for group in GROUPS:
        np.testing.assert_array_equal(again.values[group], sample.values[group])
        np.testing.assert_array_equal(again.trace[group], sample.trace[group])


@pytest.fixture(scope="module")
def samples():
    """Two samples of four boundaries with spectra that can be reckoned by hand."""
    spectrum = np.zeros((4, 64))
    spectrum[:, :8] = 2.0 ** -np.arange(8)
    one = dict.fromkeys(GROUPS, spectrum)
    trace = dict.fromkeys(GROUPS, spectrum.sum(axis=1))
    return [SampleSpectra(one, trace, dict.fromkeys(GROUPS, 8), np.ones(4), np.zeros(4))] * 2


@pytest.mark.parametrize(("share", "k"), [(0.5, 1), (0.51, 2), (0.75, 2), (0.99, 7)])
def test_k_by_energy_is_the_least_that_holds_the_share(samples, share, k):
    found = lifecycle_of(samples, k=share)
    assert (found.k, found.k_source) == (k, "energy")


def test_reference_uses_fifty_unless_told_otherwise(samples):
    assert (lifecycle_of(samples, "reference").k, lifecycle_of(samples, "reference", k=3).k) == (50, 3)


@pytest.mark.parametrize("k", [0, 65, 1.0, "some", -0.5])
def test_a_k_that_does_not_fit_is_refused(samples, k):
    with pytest.raises(HalfVError, match="elbow"):
        lifecycle_of(samples, k=k)


def test_a_share_that_the_head_does_not_hold_is_refused(samples):
    short = [
        SampleSpectra(s.values, {g: 2 * t for g, t in s.trace.items()}, s.rank, s.curvature, s.turning) for s in samples
    ]
    with pytest.raises(HalfVError, match=r"hold only 0\.5"):
        lifecycle_of(short, k=0.9)


def test_tails_and_bounds_come_with_the_entropy(samples):
    found = lifecycle_of(samples, k=3)
    weights = 2.0 ** -np.arange(8)
    np.testing.assert_allclose(found.tail_mass["visual"], weights[3:].sum() / weights.sum())
    p = weights / weights.sum()
    full = -(p * np.log(p)).sum()
    assert (found.full_entropy_low <= full).all() and (full <= found.full_entropy_high).all()
    np.testing.assert_allclose(found.spectrum[0, :8], p)


def test_a_sample_needs_a_picture(case):
    ids = case[1][0]["input_ids"]
    inputs = {"input_ids": ids[:, ids[0] != case[0].config.image_token_id]}
    with pytest.raises(ValueError, match="without a picture"):
        boundary_spectra(case[0], inputs)


def test_no_more_than_one_layers_states_are_held(case, monkeypatch):
    """At every boundary, of all earlier boundaries' tokens nothing is alive."""
    import weakref

    from halfv_probe.measures import lifecycle

    model, singles, _ = case
    held, most = [], []

    def watched(tokens):
        most.append(sum(ref() is not None for ref in held))
        states = original(tokens)
        held.append(weakref.ref(states))
        return states

    original = lifecycle.checked
    monkeypatch.setattr(lifecycle, "checked", watched)
    boundary_spectra(model, singles[0])
    assert len(held) == 2 * (len(model.model.language_model.layers) + 1)  # visual and text tokens
    assert max(most) <= 1


def test_matrices_of_a_size_are_one_batch_and_keep_their_places():
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(90, width, generator=draw, dtype=torch.float64) for width in (80, 80, 70, 9)]
    matrices = [each.T @ each for each in states]
    sizes = []
    found = in_batches(lambda batch: sizes.append(len(batch)) or leading(batch), matrices)
    assert sizes == [2, 1, 1]
    for head, matrix in zip(found, matrices, strict=True):
        torch.testing.assert_close(head, leading(matrix))
