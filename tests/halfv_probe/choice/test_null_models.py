"""Random weights have no stages and trained ones have, whichever samples are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny_vlm
from halfv_accel.evidence import NullModel
from halfv_data import scenes
from halfv_probe.choice.findings import findings_of
from halfv_probe.measures.curves import sample_curves
from halfv_probe.measures.null import fresh
from halfv_probe.measures.redundancy import redundancies
from halfv_probe.trials.prompts import Prompts
from tiny_vlm.llava import TinyLlava
from tiny_vlm.qwen import TinyQwen

SEEDS = 5


def findings(model, processor, samples):
    prompts = Prompts(processor, list(scenes(samples, seed=0)), batch_size=6)
    curves = [each for inputs in prompts for each in sample_curves(model, inputs)]
    found = [redundancies(model, inputs) for inputs in prompts]
    layer, suffix = (torch.cat([getattr(each, name) for each in found]).numpy() for name in ("layer", "suffix"))
    return findings_of(curves, layer, suffix, "paper", "elbow")[0]


def as_null(found):
    entropy = {group: found.entropy(group).mean(axis=0).tolist() for group in ("visual", "text", "all")}
    return NullModel(seed=0, samples=len(found.curves), entropy=entropy, layer_kl=found.layer_kl.mean(axis=0).tolist())


def test_random_weights_have_no_stages():
    """Both architectures, by transformers' initialisation and by our own, with and without a null model beside them."""
    stable = []
    for family in (TinyQwen(), TinyLlava()):
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            own = family.build().eval()
            both = [findings(model, family.processor(), 6) for model in (own, fresh(own, seed))]
            null = as_null(findings(fresh(own, seed + SEEDS), family.processor(), 6))
            for found in both:
                stable += [found.stages().stable, replace(found, null=null).stages().stable]
    assert len(stable) == 8 * SEEDS
    assert sum(stable) <= len(stable) // 20


@pytest.mark.parametrize("name", ["tiny-qwen2.5-vl", "tiny-llava"])
def test_trained_weights_have_stages_whichever_samples_are_drawn(name):
    model, processor = tiny_vlm.load(name, dtype="float32")
    found = findings(model, processor, 100)  # as many as a calibration takes for its curves
    found = replace(found, null=as_null(findings(fresh(model, 0), processor, 6)))
    draw = np.random.default_rng(0)
    assert all(found.of(draw.integers(0, 100, 100)).stages().stable for _ in range(20))


def test_a_fresh_model_is_another_one_and_leaves_the_random_state_alone():
    model = TinyLlava().build().eval()
    before = torch.random.get_rng_state()
    one, same, other = fresh(model, 1), fresh(model, 1), fresh(model, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [each.get_output_embeddings().weight for each in (model, one, same, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])
    assert (one.dtype, one.training) == (model.dtype, False)
