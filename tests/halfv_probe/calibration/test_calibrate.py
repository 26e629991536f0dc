"""Calibration end to end on a random model in memory: what it writes must hold together and be usable."""

import pytest
import torch

import tiny_vlm
from halfv_accel import HalfVError, Profile, accelerate
from halfv_accel.settings import Goal, Settings
from halfv_data import scenes
from halfv_probe.calibration.calibrate import calibrate
from halfv_probe.calibration.journal import Journal
from halfv_probe.choice.findings import KS
from halfv_probe.choice.holds import About
from halfv_probe.trials.candidates import Candidate
from halfv_probe.trials.prompts import Prompts
from halfv_probe.trials.replies import greedy_replies
from halfv_probe.views.plots import plot_entropy
from tiny_vlm.llava import TinyLlava

NAMES = Settings(model_id="random", data="scenes", data_fingerprint="0")
HALF = NAMES.model_copy(update={"goal": Goal(kind="target_flops", value=0.5)})


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    family = TinyLlava()
    return family.build().eval(), Prompts(family.processor(), list(scenes(3, seed=0)), batch_size=2)


@pytest.fixture(scope="module")
def calibrated(case):
    """The profile, and what the progress callback saw."""
    seen = []
    profile = calibrate(*case, NAMES, progress=lambda *step: seen.append(step))
    return profile, seen


@pytest.fixture(scope="module")
def budgeted(case):
    return calibrate(*case, HALF)


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
    assert steps == ["curves", "layer redundancy", "replies", "marginal utility", "plans"]
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
    chosen = [trial for trial in evidence.trials if trial.plan() == budgeted.plan()]
    assert [(trial.flops, trial.drop) for trial in chosen] == [(evidence.flops, evidence.drop)]
    assert min(trial.drop for trial in evidence.trials) == evidence.drop
    assert all(sum(votes.values()) == pytest.approx(1) for votes in evidence.votes.values())


def test_a_budget_that_no_plan_meets_is_refused(case):
    with pytest.raises(HalfVError, match=r"no plan needs only 1% .* --target-flops 0\."):
        calibrate(*case, NAMES.model_copy(update={"goal": Goal(kind="target_flops", value=0.01)}))


def test_a_promise_that_so_few_samples_cannot_show_is_refused_at_once(case):
    with pytest.raises(HalfVError, match="3 samples leave 3 for the test, and 228 are needed"):
        calibrate(*case, NAMES.model_copy(update={"goal": Goal(kind="max_drop", value=0.02)}))


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [("layer redundancy", 0), ("marginal utility", 2), ("plans", 0)])
def test_a_calibration_that_was_killed_goes_on_to_the_same_profile(case, calibrated, tmp_path, at):
    place = tmp_path / "profile.json.journal"

    def kill(step, done, total):
        if (step, done) == at:
            raise Killed

    with Journal(place) as journal, pytest.raises(Killed):
        calibrate(*case, NAMES, journal=journal, progress=kill)
    with Journal(place, resume=True) as journal:
        assert journal.found
        assert calibrate(*case, NAMES, journal=journal) == calibrated[0]


def test_goals_and_new_evidence_survive_the_file(budgeted, tmp_path):
    budgeted.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == budgeted


def test_latency_is_measured_on_request_and_changes_no_choice(case, calibrated):
    model, prompts = case
    profile = calibrate(model, [prompts[1]], NAMES.model_copy(update={"latency": True}))
    without = calibrate(model, [prompts[1]], NAMES)
    assert all(point.latency_saved is not None for point in profile.evidence.utility)
    assert all(point.latency_saved is None for point in without.evidence.utility)
    assert (profile.ivr, profile.ssr) == (without.ivr, without.ssr)


MODES = {"tiny-llava": "freeze", "tiny-qwen2.5-vl-sparse": "sparse"}


@pytest.fixture(scope="module", params=MODES)
def trained(request):
    """A trained model's calibration on few samples, with a null model; and the mode that it should find."""
    name, mode = request.param, MODES[request.param]
    model, processor = tiny_vlm.load(name, dtype="float32")
    settings = Settings(model_id=name, null_samples=2)
    return calibrate(model, Prompts(processor, list(scenes(36, seed=0)), batch_size=12), settings), mode


def test_a_trained_model_has_stages_and_its_own_mode(trained):
    profile, mode = trained
    evidence = profile.evidence
    assert evidence.stable and profile.ssr.mode == mode
    assert evidence.verdicts["mode"].trials == evidence.verdicts["mode"].kl == mode
    assert {each.curve for each in evidence.witnesses["ivr"]} == {
        "visual entropy",
        "text entropy",
        "attention",
        "layer KL",
    }
    assert {each.curve for each in evidence.witnesses["ssr"]} == {"visual entropy", "suffix KL", "maturity"}
    assert evidence.null is not None and len(evidence.null.layer_kl) == profile.model.num_layers
    assert max(evidence.null.layer_kl) < max(evidence.layer_kl)


def test_the_second_stage_is_asked_alone_in_every_mode(trained):
    profile, mode = trained
    lost = {}
    for each in profile.evidence.isolated:
        lost.setdefault((each.mode, each.layer), []).append(each.drop)
    layers = {layer for _, layer in lost}
    assert set(lost) == {(kind, layer) for kind in ("freeze", "sparse", "withdraw") for layer in layers}
    other = "freeze" if mode == "sparse" else "sparse"
    at = max(layers)
    assert min(lost[mode, at]) < min(lost[other, at])


def test_whether_the_choice_holds_is_asked_in_every_way(trained):
    profile, mode = trained
    asked = {about: [each for each in profile.evidence.holds if each.about == about] for about in About.__args__}
    assert [each.condition for each in asked["k"]] == [f"k = {k}" for k in KS]
    assert len(asked["halves"]) == 2 and len(asked["samples"]) == 2 and len(asked["thresholds"]) > 10
    for each in profile.evidence.holds:
        assert ("mode" in each.flips) == (each.mode != mode)


def test_variants_of_the_chosen_plan_were_run(trained):
    profile, mode = trained
    chosen = Candidate.of(profile.plan())
    run = [Candidate.of(trial.plan()) for trial in profile.evidence.trials]
    assert set(chosen.variants()) <= set(run)
    assert len(set(chosen.variants())) == (16 if mode == "sparse" else 8)
    assert not [each for each in run if each.ssr_mode == "freeze" and each.ssr_layer == profile.model.num_layers - 1]


def test_plot_refuses_an_ending_that_it_cannot_draw(calibrated, tmp_path):
    with pytest.raises(HalfVError, match=r"\.png"):
        plot_entropy(calibrated[0], tmp_path / "entropy.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_plot_draws(calibrated, tmp_path, ending, start):
    plot_entropy(calibrated[0], tmp_path / f"entropy.{ending}")
    assert (tmp_path / f"entropy.{ending}").read_bytes().startswith(start)
