"""Many questions: each gets the answer that it gets alone, and what fails costs no other row its answer."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from halfv_accel import HalfVError, accelerate, halfv_plan
from halfv_accel.answer_many import Reply, answer_many
from halfv_accel.answers import answer
from halfv_accel.prompts import chat_inputs
from halfv_data import scenes
from tiny_vlm.llava import TinyLlava

PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.25, ssr_mode="freeze", ssr_layer=6)


@dataclass(frozen=True)
class Asked:
    question: str
    pictures: Any  # images, or the error of opening them
    video: Any = None

    @property
    def images(self):
        if isinstance(self.pictures, Exception):
            raise self.pictures
        return self.pictures


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    family = TinyLlava()
    model, processor = family.build().eval(), family.processor()
    model.generation_config.eos_token_id = None  # random weights end answers at random
    samples = list(scenes(5, seed=0))
    asked = [Asked(sample.question, [sample.image]) for sample in samples]
    asked[2] = Asked("Which shape is in both?", [samples[2].image, samples[3].image])
    asked[3] = Asked("How many sides has a square?", [])
    return model, processor, asked


def ask(case, asked, **settings):
    model, processor, _ = case
    with accelerate(model, PLAN) as run:
        return [reply for batch in answer_many(run, processor, asked, max_new_tokens=3, **settings) for reply in batch]


@pytest.fixture(scope="module")
def alone(case):
    """What each question gets alone."""
    model, processor, asked = case
    replies = []
    for each in asked:
        found = answer(model, processor, chat_inputs(processor, each.images, each.question), PLAN, 3)
        replies.append(Reply(found.text, found.visual_tokens, tuple(stage.after for stage in found.stages)))
    return replies


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_each_question_gets_its_own_answer_in_its_own_place(case, alone, batch_size):
    assert [reply.text for reply in ask(case, case[2], batch_size=batch_size)] == [reply.text for reply in alone]


def test_visual_tokens_are_counted_row_by_row(case, alone):
    replies = ask(case, case[2])
    assert [reply.visual_tokens for reply in replies] == [144, 144, 288, 0, 144]
    assert [reply.visual_tokens_after for reply in replies] == [(36, 0), (36, 0), (72, 0), (0, 0), (36, 0)]
    assert ask(case, case[2][3:4], batch_size=1) == [Reply(alone[3].text, 0)]  # no stage runs where there is no picture


BAD = {
    "a picture that cannot be opened": (Asked("Why?", HalfVError("cut.png is damaged: save it again")), "^cut.png is"),
    "a picture of another kind of failure": (Asked("Why?", KeyError("x")), "^KeyError: 'x'$"),
    "a prompt that is refused": (Asked("What is <image>?", []), "<image>.*take it out"),
    "a picture that no processor takes": (Asked("Why?", ["no picture at all"]), "."),
}


@pytest.mark.parametrize("at", [0, 3, 5])
@pytest.mark.parametrize("bad", BAD)
def test_what_fails_is_a_row_of_its_own(case, alone, bad, at):
    odd, message = BAD[bad]
    asked = [*case[2][:at], odd, *case[2][at:]]
    replies = ask(case, asked, batch_size=4)
    failed = replies.pop(at)
    assert failed.text is None and failed.visual_tokens is None
    assert re.search(message, failed.error)
    assert [reply.text for reply in replies] == [reply.text for reply in alone]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
@pytest.mark.parametrize("fits", [0, 1, 3])
def test_a_batch_that_is_too_large_is_made_smaller(case, alone, monkeypatch, error, fits):
    model, sizes = case[0], []
    generate = model.generate

    def limited(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > fits:
            raise error
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", limited)
    model, processor, asked = case
    run = accelerate(model, PLAN)
    replies = [reply for batch in answer_many(run, processor, asked, 5, 3) for reply in batch]
    if fits == 0:
        assert [reply.text for reply in replies] == [None] * 5
        assert all("memory" in reply.error for reply in replies)
    else:
        assert all(reply.error is None for reply in replies) and len(replies) == 5
    assert sizes[0] == 5 and max(sizes[1:]) <= 3


def test_questions_are_read_a_batch_at_a_time(case):
    model, processor, asked = case
    read = []
    endless = (read.append(each) or each for each in [*asked, *asked])
    with accelerate(model, PLAN) as run:
        replies = answer_many(run, processor, endless, 2, 1)
        next(replies)
        assert len(read) == 2


def test_an_interruption_is_not_a_failed_row(case):
    with pytest.raises(KeyboardInterrupt):
        ask(case, [Raising()])


class Raising:
    question = "Why?"

    @property
    def images(self):
        raise KeyboardInterrupt
