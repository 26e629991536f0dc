"""One question, answered, counted and compared; and the small helpers around it."""

import pytest
import torch

from halfv_accel import HalfVError, accelerate, halfv_plan, prefill_flops
from halfv_accel.answers import REPEATS, answer, is_right
from halfv_accel.files import check_writable, write_atomically
from halfv_accel.prompts import chat_inputs
from halfv_data import scenes
from tiny_vlm.llava import TinyLlava


@pytest.fixture(scope="module")
def asked():
    torch.manual_seed(0)
    family = TinyLlava()
    model, processor = family.build().eval(), family.processor()
    model.generation_config.eos_token_id = None  # random weights end answers at random
    sample = next(iter(scenes(1, seed=0)))
    return model, processor, chat_inputs(processor, [sample.image], sample.question)


def test_answer_is_what_the_accelerated_model_generates(asked):
    model, processor, inputs = asked
    plan = halfv_plan(ivr_layer=2, ivr_retention=0.25, ssr_mode="sparse", ssr_layer=6, ssr_retention=0.05)
    with accelerate(model, plan):
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    expected = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    result = answer(model, processor, inputs, plan, max_new_tokens=4)
    assert result.text == expected
    assert [(stage.name, stage.layer, stage.then, stage.after) for stage in result.stages] == [
        ("ivr", 2, "drop", 36),
        ("ssr", 6, "drop", 7),
    ]
    assert result.visual_tokens == 144
    text = inputs["input_ids"].shape[1] - 144
    assert result.flops_ratio == prefill_flops(model.config, 144, text, plan) / prefill_flops(model.config, 144, text)
    assert result.untouched is None


def test_compare_asks_the_untouched_model_too(asked):
    model, processor, inputs = asked
    plan = halfv_plan(ivr_layer=3, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=5)
    result = answer(model, processor, inputs, plan, max_new_tokens=2, compare=True)
    ids = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    expected = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert result.untouched is not None and result.untouched.text == expected
    assert result.repeats == REPEATS
    assert result.seconds > 0 and result.untouched.seconds > 0
    assert result.stages[-1].then == "freeze" and result.stages[-1].after == 0


def test_prompt_without_a_chat_template_is_refused(asked):
    _, processor, _ = asked
    processor = type("Bare", (), {"chat_template": None})()
    with pytest.raises(HalfVError, match="no chat template"):
        chat_inputs(processor, [], "Where is the star?")


def test_files_are_written_in_full_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("halfv_accel.files.os.replace", full_disk)
    with pytest.raises(HalfVError, match="No space left"):
        write_atomically(path, b"three")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(HalfVError, match="does not exist"):
        check_writable(tmp_path / "missing" / "a.json")
    with pytest.raises(HalfVError, match="is a folder"):
        check_writable(tmp_path)


@pytest.mark.parametrize("reply", ["red", "Red", "RED.", " red\n", "red. "])
def test_case_blanks_and_a_full_stop_make_no_answer_wrong(reply):
    assert is_right(reply, "red") and is_right("red", reply)


@pytest.mark.parametrize("reply", ["", "re", "red red", "dark red", "r ed", ".red"])
def test_anything_else_does(reply):
    assert not is_right(reply, "red")
