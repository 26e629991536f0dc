"""From a miniature to a profile that is read back, runs, and says what its plan does."""

import json

import pytest
import torch

from halfv_accel import HalfVError, Profile, accelerate
from halfv_accel.settings import Settings
from halfv_probe.calibration.calibrate import calibrate
from halfv_probe.calibration.journal import Journal
from halfv_probe.methods.calibrate import calibrate_method
from halfv_probe.methods.erank import EffectiveRank
from halfv_probe.methods.fitprune import FitPruneBudget
from halfv_probe.methods.shortv import ShortV
from halfv_probe.methods.vtw import VTW
from halfv_probe.trials.candidates import relative_flops
from halfv_probe.trials.replies import greedy_replies
from halfv_probe.views.plots import plot_entropy
from halfv_probe.views.report import write_report
from halfv_probe.views.tables import frame
from tests.halfv_accel.miniatures import IMAGE, LAYERS, MINIATURES, VIDEO
from tests.halfv_probe.methods.cases import batches

NAMES = Settings(model_id="mini", data="made up", data_fingerprint="0")
METHODS = {
    "vtw": VTW(),
    "shortv": ShortV(3),
    "fitprune": FitPruneBudget(0.7),
    "adavtp": EffectiveRank("adavtp", 0.5),
    "erank_bat": EffectiveRank("erank_bat"),
}


@pytest.fixture(scope="module", params=["qwen2.5-vl", "llava-next-mistral"])
def mini(request):
    return MINIATURES[request.param]


@pytest.fixture(scope="module", params=METHODS)
def case(request, mini):
    """A miniature, a method, its profile, and the steps that were shown."""
    seen, method = [], METHODS[request.param]
    profile = calibrate_method(mini.model(), batches(mini), method, NAMES, progress=lambda step, *_: seen.append(step))
    return mini, method, profile, list(dict.fromkeys(seen))


def test_a_profile_is_read_back_equal_and_runs(case, tmp_path):
    mini, method, profile, _ = case
    profile.save(tmp_path / "profile.json")
    loaded = Profile.load(tmp_path / "profile.json")
    assert loaded == profile
    assert loaded.plan() == profile.plan()
    assert loaded.evidence.measured.method == method.name
    assert loaded.calibration.samples == 3
    loaded.check(mini.model())
    with accelerate(mini.model(), loaded) as run, torch.no_grad():
        mini.model()(**batches(mini)[1])
    assert [stage.layer for stage in run.last.stages] == [stage.layer for stage in profile.plan().stages]


def test_the_file_holds_only_what_was_measured(case, tmp_path):
    _, method, profile, _ = case
    profile.save(tmp_path / "profile.json")
    evidence = json.loads((tmp_path / "profile.json").read_text())["evidence"]
    result = {"measured", "choices", "flops", "agreement", "drop", "drop_bound"}
    assert set(evidence) == (result | {"layer_kl"} if method.name == "shortv" else result)
    assert all(value not in ([], None) for value in evidence["measured"].values())


def test_what_the_plan_does_is_counted_with_the_accelerated_model(case):
    mini, _, profile, _ = case
    model, same = mini.model(), []
    for inputs in batches(mini):
        untouched = greedy_replies(model, inputs).ids
        with accelerate(model, profile):
            same += [a == b for a, b in zip(untouched, greedy_replies(model, inputs).ids, strict=True)]
    assert profile.evidence.agreement == pytest.approx(sum(same) / len(same))
    assert profile.evidence.drop == pytest.approx(1 - profile.evidence.agreement)
    assert 0 < profile.evidence.flops < 1.05  # choosing costs, too, and here is little to save


def test_progress_shows_every_step(case):
    _, method, _, steps = case
    own = {"vtw": "withdrawal", "shortv": "KL of layers", "fitprune": "attention"}
    assert steps == ["replies", own.get(method.name, "effective rank"), "plan"]


def test_there_is_no_page_and_no_curve(case, tmp_path):
    *_, profile, _ = case
    draw = lambda: plot_entropy(profile, tmp_path / "a.png")  # noqa: E731
    for attempt in (lambda: write_report(profile, tmp_path / "a.html"), draw, lambda: frame(profile, "entropy")):
        with pytest.raises(HalfVError, match="and not HalfV's own: only halfv run and halfv bench can use it"):
            attempt()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "fragment"),
    [
        (lambda evidence: evidence.pop("measured"), "without measured there must be k and entropy"),
        (
            lambda evidence: evidence["measured"].update(withdrawal_kl=[1.0]),
            r"withdrawal_kl has 1 values, but 6 layers",
        ),
        (lambda evidence: evidence["measured"].pop("method"), r"evidence\.measured\.method: field required"),
    ],
)
def test_a_spoilt_file_is_refused(mini, tmp_path, spoil, fragment):
    path = tmp_path / "profile.json"
    calibrate_method(mini.model(), batches(mini), VTW(), NAMES).save(path)
    document = json.loads(path.read_text())
    spoil(document["evidence"])
    path.write_text(json.dumps(document))
    with pytest.raises(HalfVError, match=fragment):
        Profile.load(path)


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_calibration_that_was_killed_goes_on_to_the_same_profile(mini, method, tmp_path):
    def kill(step, done, total):
        if (step, done) == ("plan", 1):
            raise Killed

    place = tmp_path / "journal"
    with Journal(place) as journal, pytest.raises(Killed):
        calibrate_method(mini.model(), batches(mini), method, NAMES, journal=journal, progress=kill)
    with Journal(place, resume=True) as journal:
        assert journal.found
        resumed = calibrate_method(mini.model(), batches(mini), method, NAMES, journal=journal)
    assert resumed == calibrate_method(mini.model(), batches(mini), method, NAMES)


def test_fitprunes_flops_are_those_of_the_samples_mean(mini):
    profile = calibrate_method(mini.model(), batches(mini), FitPruneBudget(0.7), NAMES)
    assert profile.evidence.flops <= 0.7
    placeholders, visual, every = {IMAGE, VIDEO} if mini.videos else {IMAGE}, 0, 0
    for inputs in batches(mini):
        visual += sum(token in placeholders for row in inputs["input_ids"].tolist() for token in row)
        every += int(inputs["attention_mask"].sum())
    visual, text = round(visual / 3), round((every - visual) / 3)
    assert profile.evidence.flops == relative_flops(profile.plan(), mini.model().config, visual, text)


def test_what_makes_no_sense_is_refused_before_anything_is_measured(mini):
    with pytest.raises(HalfVError, match="layers is 7"):
        calibrate_method(
            mini.model(), batches(mini), ShortV(LAYERS + 1), NAMES, progress=lambda *_: pytest.fail("measured")
        )


def test_halfvs_own_file_says_nothing_of_other_methods(mini, tmp_path):
    calibrate(mini.model(), batches(mini), NAMES).save(tmp_path / "profile.json")
    assert "measured" not in json.loads((tmp_path / "profile.json").read_text())["evidence"]
