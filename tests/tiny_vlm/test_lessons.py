"""Lessons of the sparse variant: training sees what the accelerator will do to the model."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from halfv_accel import Plan, Stage, accelerate
from halfv_accel.strategies import KeepNone, LastTokenAttention
from tiny_vlm.family import VISUAL_TOKENS
from tiny_vlm.lessons import FEW, answers_of_others, gaze_loss, last_tokens
from tiny_vlm.packing import Packer
from tiny_vlm.qwen import TinyQwen
from tiny_vlm.train import RECIPES, SPARSE, Lesson, Recipe, Trainer, decode

LAYER = 6


@pytest.fixture(scope="module")
def alone(tiny):
    """Two pictures with their first question only, so that no other question keeps tokens, too."""
    batch = tiny.packer.batch("validation", seed=5, step=0, size=2)
    others = batch.segments > 1
    return replace(
        batch, segments=batch.segments.masked_fill(others, -1), labels=batch.labels.masked_fill(others, -100)
    )


def accelerated_logits(tiny, batch, row, plan):
    """What the accelerator makes of the same question behind the same picture."""
    end = batch.spans[row][0][1]
    pixels = batch.pixels.reshape(len(batch.ids), -1, *batch.pixels.shape[1:])[row]
    inputs = {"input_ids": batch.ids[row : row + 1, :end], "pixel_values": pixels}
    if isinstance(tiny.family, TinyQwen):
        inputs |= {"image_grid_thw": torch.tensor([[1, 24, 24]]), "mm_token_type_ids": tiny_kinds(tiny, inputs)}
    with accelerate(tiny.model, plan):
        return tiny.model(**inputs).logits[0, -1]


def tiny_kinds(tiny, inputs):
    return (inputs["input_ids"] == tiny.model.config.image_token_id).long()


@torch.no_grad()
@pytest.mark.parametrize(
    ("lesson", "strategy", "retention", "then"),
    [
        (Lesson(stale=LAYER), KeepNone(), 0.0, "freeze"),
        (Lesson(few=LAYER), LastTokenAttention(rotary=True), 0.05, "drop"),
    ],
    ids=["stale", "few"],
)
def test_a_lesson_shows_what_the_accelerator_would(tiny, alone, lesson, strategy, retention, then):
    plan = Plan((Stage("ssr", LAYER, strategy, retention, then),))
    features = tiny.family.features(tiny.model, alone.pixels)
    states = decode(tiny.model, alone, features, tiny.packer.visual, lesson=lesson)[-1]
    plain = decode(tiny.model, alone, features, tiny.packer.visual)[-1]
    for row, place in zip(*last_tokens(alone), strict=True):
        logits = tiny.model.lm_head(states[row, place])
        expected = accelerated_logits(tiny, alone, int(row), plan)
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(logits, tiny.model.lm_head(plain[row, place]), atol=1e-3)


def test_others_answers_keep_the_mix_of_each_task(tiny):
    batch = tiny.packer.batch("validation", seed=5, step=0, size=4)
    taught = answers_of_others(batch)
    assert torch.equal(taught >= 0, batch.labels >= 0)

    def mix(labels):
        spans = [(row, *span) for row, spans in enumerate(batch.spans) for span in spans]
        return Counter((task, tuple(labels[row, start:end].tolist())) for row, task, start, end in spans)

    assert mix(taught) == mix(batch.labels)
    assert not torch.equal(taught, batch.labels)


def test_a_gaze_at_the_answer_costs_nothing_and_one_that_is_spread_does(tiny):
    batch = tiny.packer.batch("validation", seed=5, step=0, size=4)
    rows, places = last_tokens(batch)
    assert len(rows) == sum(map(len, batch.spans))
    tokens = torch.arange(VISUAL_TOKENS)
    cells = tokens // 12 // 4 * 3 + tokens % 12 // 4
    drawn = (batch.shapes < 8) | (batch.digits < 10).any(dim=-1)
    aimed = (drawn[rows] & (cells == batch.target[rows, places, None])).float() + 1e-12
    assert gaze_loss(aimed / aimed.sum(dim=1, keepdim=True), batch) == pytest.approx(0, abs=1e-6)
    assert gaze_loss(torch.full_like(aimed, 1 / VISUAL_TOKENS), batch) > 1


def test_a_question_keeps_a_twentieth():
    assert FEW == 7


def test_lessons_come_as_often_as_the_recipe_says_and_repeat():
    recipe = RECIPES[SPARSE]
    drawn = Counter(recipe.lesson(step) for step in range(4000))
    for name, layer, probability in recipe.lessons:
        assert drawn[Lesson(**{name: layer})] / 4000 == pytest.approx(probability, abs=0.03)
    assert drawn == Counter(recipe.lesson(step) for step in range(4000))
    assert {Recipe("tiny-llava", 100).lesson(step) for step in range(100)} == {Lesson()}


def test_every_lesson_trains(tmp_path, monkeypatch):
    """From the weights that it starts from, and every loss is finite."""
    monkeypatch.setattr(TinyQwen, "speed_up", lambda self, model: None)
    lessons = (("stale", 7, 0.4), ("few", 7, 0.4))
    trainer = Trainer(replace(RECIPES[SPARSE], batch_size=2, lessons=lessons), tmp_path, "cpu")
    assert isinstance(trainer.packer, Packer)
    kinds = set()
    while len(kinds) < 3:
        kinds.add(trainer.recipe.lesson(trainer.step))
        losses = trainer.train_step()
        assert all(loss == loss and loss < 100 for loss in losses.values()), losses
        assert ("stale" in losses) == (trainer.recipe.lesson(trainer.step).stale is not None)
        trainer.step += 1
