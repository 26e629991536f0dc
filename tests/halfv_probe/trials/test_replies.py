"""Replies are what an argmax, token by token, gives; and they follow their prompts at the right places."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_probe.trials.replies import Replies, greedy_replies, with_replies
from tests.halfv_accel import oracle
from tests.halfv_accel.miniatures import MINIATURES

ROWS = [(0, 1, 6), (1, 2, 9), (2, 1, 3)]
UNTOUCHED = {"ivr": (99, 0, 0)}  # a plan that never acts


def argmax_reply(mini, prompt, most, ends=()):
    """Slow: every token starts again from the beginning. A placeholder ends a reply, too: no picture belongs to it."""
    tokens, stops = [], {*ends, *oracle.placeholders(mini.model()).values()}
    while len(tokens) < most and not (tokens and tokens[-1] in stops):
        tokens.append(int(oracle.forward(mini, prompt, tokens, UNTOUCHED)[0][-1].argmax()))
    return tokens


def prompts(mini):
    return [mini.prompt(*row) for row in ROWS]


SETTINGS = {
    "none": {},
    "sampling": dict(do_sample=True, temperature=9.0, top_k=50, top_p=0.9),
    "repetition penalty": dict(repetition_penalty=9.0),
    "no repetition": dict(no_repeat_ngram_size=1),
    "forbidden tokens": dict(suppress_tokens=list(range(0, 64, 2))),
    "beams": dict(num_beams=3),
    "length": dict(max_new_tokens=2, min_new_tokens=2, max_length=3),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_replies_ignore_the_models_own_settings(mini, monkeypatch, settings):
    model = mini.model()
    own = model.generation_config
    for name, value in SETTINGS[settings].items():
        monkeypatch.setattr(own, name, value)
    before = own.to_dict()
    found = greedy_replies(model, mini.batch(prompts(mini)), 5)
    assert found.ids == [argmax_reply(mini, prompt, 5) for prompt in prompts(mini)]
    assert model.generation_config is own
    assert own.to_dict() == before


def test_the_models_own_settings_survive_a_failure(mini, untouched, breaking):
    model, own = mini.model(), mini.model().generation_config
    with breaking(model), untouched(model), pytest.raises(RuntimeError, match="broken"):
        greedy_replies(model, mini.batch(prompts(mini)))
    assert model.generation_config is own


@pytest.mark.parametrize("several", [False, True])
def test_a_reply_ends_with_its_end_token(mini, monkeypatch, several):
    """End tokens are some that replies really hold in the middle."""
    plain = [argmax_reply(mini, prompt, 6) for prompt in prompts(mini)]
    end, other = plain[0][2], plain[1][1]
    monkeypatch.setattr(mini.model().generation_config, "eos_token_id", [end, other] if several else end)
    ends = {end, other} if several else {end}
    found = greedy_replies(mini.model(), mini.batch(prompts(mini)), 6)
    assert found.ids == [argmax_reply(mini, prompt, 6, ends) for prompt in prompts(mini)]
    assert len(found.ids[0]) <= 3
    assert found.longest == max(len(ids) for ids in found.ids)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=4),
    kinds=st.booleans(),
    masked=st.booleans(),
)
def test_a_reply_stands_behind_its_prompt_but_for_its_last_token(lengths, kinds, masked):
    width = max(prompt for prompt, _ in lengths)
    if not masked:
        lengths = [(width, reply) for _, reply in lengths]
    ids = torch.tensor([[0] * (width - prompt) + list(range(10, 10 + prompt)) for prompt, _ in lengths])
    replies = Replies([list(range(50, 50 + reply)) for _, reply in lengths])
    inputs = {"input_ids": ids, "pixel_values": "pictures"}
    if masked:
        inputs["attention_mask"] = (ids > 0).long()
    if kinds:
        inputs["mm_token_type_ids"] = torch.ones_like(ids)
    given_keys = set(inputs)
    extended, wanted, last = with_replies(inputs, replies)
    assert set(inputs) == given_keys and set(extended) == given_keys | {"attention_mask"}
    assert extended["pixel_values"] == "pictures"
    for row, (prompt, reply) in enumerate(lengths):
        real = extended["attention_mask"][row].bool()
        assert extended["input_ids"][row][real].tolist() == [*range(10, 10 + prompt), *range(50, 50 + reply - 1)]
        assert last[row] == width - 1
        predicting = [int(last[row])]  # the prompt's last token predicts the first, each of the reply's the next
        for token in range(50, 50 + reply - 1):
            predicting.append(extended["input_ids"][row].tolist().index(token))
        assert wanted[row].nonzero()[:, 0].tolist() == predicting
        if kinds:
            assert extended["mm_token_type_ids"][row].tolist() == [1] * width + [0] * (replies.longest - 1)


def test_prompts_padded_on_the_right_are_refused(mini):
    inputs = mini.batch(prompts(mini), side="right")
    with pytest.raises(ValueError, match="padded on the left"):
        with_replies(inputs, Replies([[7, 8], [7], [7, 8, 9]]))


def test_replies_of_one_token_fit_behind_any_padding():
    inputs = MINIATURES["llava"].batch(prompts(MINIATURES["llava"]), side="right")
    extended, wanted, last = with_replies(inputs, Replies([[7], [8], [9]]))
    assert torch.equal(extended["input_ids"], inputs["input_ids"])
    assert last.tolist() == (inputs["attention_mask"].sum(1) - 1).tolist()
    assert wanted.nonzero().tolist() == [[row, place] for row, place in enumerate(last.tolist())]
