"""Calibration end to end on a random model in memory: what it writes must hold together and be usable."""

import pytest
import torch

from halfv_accel import HalfVError, accelerate
from halfv_data import scenes
from halfv_probe.calibration import RATIOS, calibrate, measure_agreement
from halfv_probe.plots import plot_entropy
from halfv_probe.prompts import Prompts
from tiny_vlm.llava import TinyLlava


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    family = TinyLlava()
    return family.build().eval(), Prompts(family.processor(), list(scenes(2, seed=0)))


@pytest.fixture(scope="module")
def calibrated(case):
    """The profile, and what the progress callback saw."""
    seen = []
    profile = calibrate(
        *case, model_id="random", data="scenes", data_fingerprint="0", progress=lambda *step: seen.append(step)
    )
    return profile, seen


def test_profile_holds_together_and_runs(case, calibrated):
    model, prompts = case
    profile, _ = calibrated
    profile.check(model)
    assert (profile.ivr.retention, profile.ivr.anchor_ratio, profile.ssr.retention) == RATIOS[profile.ssr.mode]
    with accelerate(model, profile) as run:
        model(**next(iter(prompts)))
    assert run.last.visual_tokens == [144]


def test_progress_reaches_the_end_of_every_step(calibrated):
    _, seen = calibrated
    steps = list(dict.fromkeys(step for step, *_ in seen))
    assert steps == ["entropy", "layer redundancy", "agreement"]
    for step in steps:
        assert [done for name, done, _ in seen if name == step] == [0, 1, 2]


def test_random_weights_have_no_stages_and_the_profile_says_so(calibrated):
    profile, _ = calibrated
    assert not profile.evidence.stable
    assert profile.ssr.mode == "none"
    assert "no three stages" in profile.evidence.choices["ivr"]


def test_agreement_counts_unchanged_first_tokens(case, calibrated):
    model, prompts = case
    profile, _ = calibrated
    same = []
    with torch.no_grad():
        for prompt in prompts:
            untouched = model(**prompt).logits[0, -1].argmax()
            with accelerate(model, profile):
                same.append(model(**prompt).logits[0, -1].argmax() == untouched)
    assert measure_agreement(model, profile, prompts) == sum(same) / len(same) == profile.evidence.agreement


def test_plot_refuses_an_ending_that_it_cannot_draw(calibrated, tmp_path):
    with pytest.raises(HalfVError, match=r"\.png"):
        plot_entropy(calibrated[0], tmp_path / "entropy.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_plot_draws(calibrated, tmp_path, ending, start):
    plot_entropy(calibrated[0], tmp_path / f"entropy.{ending}")
    assert (tmp_path / f"entropy.{ending}").read_bytes().startswith(start)
