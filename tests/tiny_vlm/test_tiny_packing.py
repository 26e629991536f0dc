"""A packed training sequence asks each question exactly as a user asks it alone."""

import pytest
import torch

from halfv_data.drawing import draw_scene, scene_rng
from tiny_vlm.evaluate import prompt
from tiny_vlm.family import VISUAL_TOKENS
from tiny_vlm.invisible import invisible_visual_tokens
from tiny_vlm.packing import block_mask, questions_about
from tiny_vlm.train import decode


@pytest.fixture(scope="module")
def packed(tiny):
    """Two pictures, and the questions that the packer wrote behind each of them."""
    batch = tiny.packer.batch("validation", seed=5, step=0, size=2)
    scenes, asked = [], []
    for index, spans in enumerate(batch.spans):
        rng = scene_rng("validation", 5, index)
        scenes.append(draw_scene(rng))
        waiting = questions_about(scenes[-1], rng)
        asked.append([])
        for task, start, end in spans:
            answer = tiny.packer.tokenizer.decode(batch.ids[index, start : end - 1])
            found = next(q for q in waiting if (q.task, q.answer) == (task, answer))
            waiting.remove(found)
            asked[-1].append(found)
    return batch, scenes, asked


def questions_of(packed):
    batch, scenes, asked = packed
    for row, (scene, questions) in enumerate(zip(scenes, asked, strict=True)):
        for block, (question, (_, start, end)) in enumerate(zip(questions, batch.spans[row], strict=True), 1):
            yield row, block, scene, question, start, end


def single_turn(tiny, scene, question):
    text = prompt(tiny.processor, question.text)
    return tiny.processor(images=[scene.image], text=[text], return_tensors="pt")


def test_packed_tokens_equal_the_chat_template(tiny, packed):
    batch = packed[0]
    assert sum(len(spans) for spans in batch.spans) >= 8
    for row, block, scene, question, start, end in questions_of(packed):
        alone = single_turn(tiny, scene, question)["input_ids"][0]
        visible = (batch.segments[row] == 0) | (batch.segments[row] == block)
        assert torch.equal(batch.ids[row, visible][: -(end - start)], alone)


def test_packed_answers_are_labelled_and_end_the_turn(tiny, packed):
    batch = packed[0]
    assert torch.equal(batch.labels >= 0, sum_of_spans(batch))
    for row, _, _, question, start, end in questions_of(packed):
        assert torch.equal(batch.labels[row, start:end], batch.ids[row, start:end])
        assert tiny.packer.tokenizer.decode(batch.ids[row, start : end - 1]) == question.answer
        assert batch.ids[row, end - 1] == tiny.model.generation_config.eos_token_id


def sum_of_spans(batch):
    marked = torch.zeros_like(batch.labels, dtype=torch.bool)
    for row, spans in enumerate(batch.spans):
        for _, start, end in spans:
            marked[row, start:end] = True
    return marked


@torch.no_grad()
@pytest.mark.parametrize("blind", [None, 2])
def test_packed_logits_equal_the_single_turn(tiny, packed, blind):
    """Also with blinded text: the packed mask and the hooks of ``invisible`` are two ways to the same thing."""
    batch = packed[0]
    features = tiny.family.features(tiny.model, batch.pixels)
    states = decode(tiny.model, batch, features, tiny.packer.visual, blind=blind)[-1]
    logits = tiny.model.lm_head(states)
    from_layer = len(tiny.model.model.language_model.layers) if blind is None else blind
    for row, _, scene, question, start, _ in list(questions_of(packed))[::3]:
        with invisible_visual_tokens(tiny.model, from_layer):
            alone = tiny.model(**single_turn(tiny, scene, question), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits[row, start - 1], alone, atol=2e-5, rtol=1e-4)


def test_a_question_sees_the_picture_and_itself_only(packed):
    batch = packed[0]
    mask, segments = block_mask(batch.segments)[:, 0], batch.segments
    for row in range(len(segments)):
        query, key = mask[row].nonzero(as_tuple=True)
        assert (key <= query).all()
        own = segments[row][query] == segments[row][key]
        assert (own | (segments[row][key] == 0) | (query == key)).all()


def test_a_batch_is_decided_by_split_seed_and_step(tiny):
    first, again = (tiny.packer.batch("training", 0, 3, 2) for _ in range(2))
    other = tiny.packer.batch("training", 0, 4, 2)
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.ids, again.ids)
    assert not torch.equal(first.pixels, other.pixels)
    assert (first.ids == tiny.model.config.image_token_id).sum() == 2 * VISUAL_TOKENS
