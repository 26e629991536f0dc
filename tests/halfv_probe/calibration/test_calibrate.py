"""Calibration end to end on a random model in memory: what it writes must hold together and be usable."""

import pytest
import torch

from halfv_accel import HalfVError, Profile, accelerate
from halfv_accel.evidence import Goal
from halfv_data import scenes
from halfv_probe.calibration.calibrate import calibrate, neighbourhood
from halfv_probe.calibration.journal import Journal
from halfv_probe.trials.prompts import Prompts
from halfv_probe.trials.replies import greedy_replies
from halfv_probe.views.plots import plot_entropy
from tiny_vlm.llava import TinyLlava

NAMES = dict(model_id="random", data="scenes", data_fingerprint="0")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    family = TinyLlava()
    return family.build().eval(), Prompts(family.processor(), list(scenes(3, seed=0)), batch_size=2)


@pytest.fixture(scope="module")
def calibrated(case):
    """The profile, and what the progress callback saw."""
    seen = []
    profile = calibrate(*case, **NAMES, progress=lambda *step: seen.append(step))
    return profile, seen


@pytest.fixture(scope="module")
def budgeted(case):
    return calibrate(*case, **NAMES, goal=Goal(kind="target_flops", value=0.5))


def test_profile_holds_together_and_runs(case, calibrated):
    model, prompts = case
    profile, _ = calibrated
    profile.check(model)
    with accelerate(model, profile) as run:
        model(**prompts[0])
    assert run.last.visual_tokens == [144, 144]


def test_progress_reaches_the_end_of_every_step(calibrated):
    _, seen = calibrated
    steps = list(dict.fromkeys(step for step, *_ in seen))
    assert steps == ["entropy", "layer redundancy", "replies", "marginal utility", "plans"]
    for step in steps:
        assert [(done, total) for name, done, total in seen if name == step] == [(0, 3), (2, 3), (3, 3)]


def test_random_weights_have_no_stages_and_the_profile_says_so(calibrated):
    profile, _ = calibrated
    assert not profile.evidence.stable
    assert profile.ssr.mode == "none"
    assert "no three stages" in profile.evidence.choices["ivr"]


@pytest.mark.parametrize("kind", ["paper", "target_flops"])
def test_agreement_counts_unchanged_replies(case, calibrated, budgeted, kind):
    model, prompts = case
    profile = calibrated[0] if kind == "paper" else budgeted
    same = []
    for inputs in prompts:
        untouched = greedy_replies(model, inputs).ids
        with accelerate(model, profile):
            same += [a == b for a, b in zip(untouched, greedy_replies(model, inputs).ids, strict=True)]
    assert profile.evidence.agreement == pytest.approx(sum(same) / len(same))
    assert profile.evidence.drop == pytest.approx(1 - profile.evidence.agreement)  # random weights answer nothing right


def test_a_budget_is_kept_and_everything_tried_is_written_down(budgeted):
    evidence = budgeted.evidence
    assert evidence.flops <= 0.5
    assert all(trial.flops <= 0.5 for trial in evidence.trials)
    chosen = [
        trial
        for trial in evidence.trials
        if (trial.ivr_layer, trial.ivr_retention, trial.ssr_mode, trial.ssr_layer, trial.ssr_retention)
        == (budgeted.ivr.layer, budgeted.ivr.retention, *budgeted.ssr.model_dump().values())
    ]
    assert [(trial.flops, trial.drop) for trial in chosen] == [(evidence.flops, evidence.drop)]
    assert min(trial.drop for trial in evidence.trials) == evidence.drop
    assert all(sum(votes.values()) == pytest.approx(1) for votes in evidence.votes.values())


def test_a_budget_that_no_plan_meets_is_refused(case):
    with pytest.raises(HalfVError, match=r"no plan needs only 1% .* --target-flops 0\."):
        calibrate(*case, **NAMES, goal=Goal(kind="target_flops", value=0.01))


def test_a_promise_that_so_few_samples_cannot_show_is_refused_at_once(case):
    with pytest.raises(HalfVError, match="3 samples leave 3 for the test, and 149 are needed"):
        calibrate(*case, **NAMES, goal=Goal(kind="max_drop", value=0.02))


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [("layer redundancy", 0), ("marginal utility", 2), ("plans", 0)])
def test_a_calibration_that_was_killed_goes_on_to_the_same_profile(case, calibrated, tmp_path, at):
    place = tmp_path / "profile.json.journal"

    def kill(step, done, total):
        if (step, done) == at:
            raise Killed

    with Journal(place) as journal, pytest.raises(Killed):
        calibrate(*case, **NAMES, journal=journal, progress=kill)
    with Journal(place, resume=True) as journal:
        assert journal.found
        assert calibrate(*case, **NAMES, journal=journal) == calibrated[0]


def test_goals_and_new_evidence_survive_the_file(budgeted, tmp_path):
    budgeted.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == budgeted


def test_latency_is_measured_on_request_and_changes_no_choice(case, calibrated):
    model, prompts = case
    profile = calibrate(model, [prompts[1]], **NAMES, latency=True)
    without = calibrate(model, [prompts[1]], **NAMES)
    assert all(point.latency_saved is not None for point in profile.evidence.utility)
    assert all(point.latency_saved is None for point in without.evidence.utility)
    assert (profile.ivr, profile.ssr) == (without.ivr, without.ssr)


@pytest.mark.parametrize("depth", [4, 10, 28, 40])
def test_the_neighbourhood_holds_its_layer_and_stays_inside(depth):
    for layer in range(1, depth - 1):
        near = neighbourhood(layer, depth)
        assert layer in near and near[0] >= 1 and near[-1] <= depth - 2


def test_plot_refuses_an_ending_that_it_cannot_draw(calibrated, tmp_path):
    with pytest.raises(HalfVError, match=r"\.png"):
        plot_entropy(calibrated[0], tmp_path / "entropy.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_plot_draws(calibrated, tmp_path, ending, start):
    plot_entropy(calibrated[0], tmp_path / f"entropy.{ending}")
    assert (tmp_path / f"entropy.{ending}").read_bytes().startswith(start)
