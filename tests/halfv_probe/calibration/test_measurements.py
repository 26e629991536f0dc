"""What was measured on a sample is kept for as long as the sample is the same, whatever becomes of the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from halfv_accel import HalfVError
from halfv_accel.settings import Settings
from halfv_data import scenes
from halfv_probe.calibration.calibrate import calibrate
from halfv_probe.calibration.journal import Journal, header
from halfv_probe.calibration.measurements import Measurements
from halfv_probe.trials.candidates import Candidate
from halfv_probe.trials.prompts import Prompts
from tiny_vlm.llava import TinyLlava

SAMPLES = list(scenes(7, seed=0))
BATCH = 3
MENDED = [replace(SAMPLES[4], question="What is this?") if i == 4 else sample for i, sample in enumerate(SAMPLES)]
PLANS = [Candidate(2, 0.5, 0.2), Candidate(1, 0.25, 0.1, "sparse", 4, 0.05)]


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    family = TinyLlava()
    return family.build().eval(), family.processor()


class Watched(Prompts):
    """Prompts that keep which samples were prepared."""

    def of(self, samples):
        self.prepared.append([sample.question for sample in samples])
        return super().of(samples)


def everything(tiny, samples, journal):
    """Results of all that is measured, and the questions of what was prepared for it, batch by batch."""
    model, processor = tiny
    prompts = Watched(processor, samples, batch_size=BATCH)
    object.__setattr__(prompts, "prepared", [])
    measure = Measurements(model, prompts, "paper", journal, lambda *_: None)
    replied = measure.replies()
    layer, suffix, same = measure.redundancies()
    spectra, null = measure.null(len(samples), seed=0)
    trials = measure.trials("plans", PLANS, replied)
    results = {
        "curves": [each.to_json() for each in measure.curves()],
        "replies": [ids for batch in replied.batches for ids in batch.ids],
        "layer": layer.tolist(),
        "suffix": suffix.tolist(),
        "same": same.tolist(),
        "null": [each.to_json() for each in spectra],
        "kept": trials.same.T.tolist(),
        "kl": trials.kl.T.tolist(),
    }
    journal.close()
    assert len(null) == layer.shape[1]
    return results, prompts.prepared


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """All results on SAMPLES, and their journal's bytes."""
    path = tmp_path_factory.mktemp("measured") / "journal"
    found, prepared = everything(tiny, SAMPLES, Journal(path))
    assert prepared[:3] == [[sample.question for sample in SAMPLES[i : i + BATCH]] for i in (0, 3, 6)]
    return found, path.read_bytes()


@pytest.fixture
def resumed(measured, tmp_path):
    path = tmp_path / "journal"
    path.write_bytes(measured[1])
    return Journal(path, resume=True)


def close(found, wanted):
    """Equal up to the rounding of another batch's padding."""
    if isinstance(wanted, dict):
        return all(close(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(close(*pair) for pair in zip(found, wanted, strict=True))
    return wanted == found if wanted is None else np.isclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_after_mending_a_row_only_that_row_is_measured(tiny, measured, resumed):
    found, prepared = everything(tiny, MENDED, resumed)
    assert prepared and all(questions == ["What is this?"] for questions in prepared)
    fresh, _ = everything(tiny, MENDED, Journal())
    for name, results in found.items():
        old = measured[0][name]
        assert [each for i, each in enumerate(results) if i != 4] == [each for i, each in enumerate(old) if i != 4]
        assert close(results[4], fresh[name][4]), name
        assert name in ("replies", "same", "kept") or results[4] != old[4]


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 5, 6], [6, 5, 4, 3, 2, 1, 0], [2], [3, 3, 3, 3]])
def test_without_some_rows_or_in_another_order_nothing_is_measured_again(tiny, measured, resumed, kept):
    found, prepared = everything(tiny, [SAMPLES[i] for i in kept], resumed)
    assert prepared == []
    for name, results in found.items():
        assert results == [measured[0][name][i] for i in kept]


def test_a_row_that_was_added_is_measured_alone(tiny, measured, resumed):
    (new,) = scenes(1, seed=9)
    found, prepared = everything(tiny, [new, *SAMPLES], resumed)
    assert {question for questions in prepared for question in questions} == {new.question}
    for name, results in found.items():
        assert results[1:] == measured[0][name]


def test_the_same_sample_twice_is_measured_once(tiny):
    _, prepared = everything(tiny, [SAMPLES[0], SAMPLES[0], SAMPLES[1]], Journal())
    assert all(questions == [SAMPLES[0].question, SAMPLES[1].question] for questions in prepared)


def test_batches_that_were_prepared_beforehand_are_known_by_their_content(tiny, tmp_path):
    model, processor = tiny
    first, second = (Prompts(processor, SAMPLES[i : i + 2])[0] for i in (0, 3))
    path, forwards = tmp_path / "journal", []

    def layers(batches):
        with Journal(path, resume=True) as journal:
            return Measurements(model, batches, "paper", journal, lambda *_: None).redundancies()[0].tolist()

    handle = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        one = layers([first])
        cost = len(forwards)
        assert layers([second, first])[1:] == one and len(forwards) == 2 * cost
        assert layers([first, second])[:1] == one and len(forwards) == 2 * cost
    finally:
        handle.remove()


class Killed(Exception):
    pass


def test_a_mended_calibration_goes_on_to_nearly_the_profile_of_a_fresh_one(tiny, tmp_path):
    model, processor = tiny
    settings = Settings(model_id="random", data_fingerprint="before")
    path = tmp_path / "journal"

    def kill(step, done, total):
        if (step, done) == ("plans", 0):
            raise Killed

    with Journal(path, header(model, settings, BATCH)) as journal, pytest.raises(Killed):
        calibrate(model, Prompts(processor, SAMPLES[3:6], batch_size=2), settings, journal=journal, progress=kill)
    after = settings.model_copy(update={"data_fingerprint": "after"})
    prompts = Prompts(processor, MENDED[3:6], batch_size=2)
    with Journal(path, header(model, after, BATCH), resume=True) as journal:
        assert journal.found
        profile = calibrate(model, prompts, after, journal=journal)
    fresh = calibrate(model, prompts, after)
    assert profile.calibration == fresh.calibration
    assert profile.plan() == fresh.plan()
    assert profile.evidence.layer_kl == pytest.approx(fresh.evidence.layer_kl, rel=1e-2, abs=1e-6)
    for group, curve in fresh.evidence.entropy.items():
        assert profile.evidence.entropy[group] == pytest.approx(curve, rel=1e-3)


def test_other_weights_or_settings_are_still_refused(tiny, tmp_path):
    model, _ = tiny
    path = tmp_path / "journal"
    with Journal(path, header(model, Settings(), BATCH)) as journal:
        journal.recall("a", lambda: 1)
    with pytest.raises(HalfVError, match=r"another calibration \(fidelity, batch_size differ\)"):
        Journal(path, header(model, Settings(fidelity="reference"), BATCH + 1), resume=True)
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] += 1
    try:
        with pytest.raises(HalfVError, match=r"another calibration \(weights differ\)"):
            Journal(path, header(model, Settings(), BATCH), resume=True)
    finally:
        with torch.no_grad():
            model.get_output_embeddings().weight[0, 0] -= 1
