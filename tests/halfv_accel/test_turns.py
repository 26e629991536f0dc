"""A second turn on the cache of the first, with and without a new picture, equals the oracle on the whole talk."""

import pytest
import torch

from halfv_accel import accelerate, halfv_plan

from . import oracle
from .test_oracle import TOLERANCE, counts

ANSWER = [11, 12]
NEW_TOKENS = 2
PLANS = {
    "sparse": dict(ivr_layer=1, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="sparse", ssr_layer=3, ssr_retention=0.1),
    "freeze": dict(ivr_layer=2, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=4),
    "before the language model": dict(
        ivr_layer=0,
        ivr_retention=0.5,
        anchor_ratio=0.2,
        ivr_scored_by="own",
        ssr_mode="sparse",
        ssr_layer=2,
        ssr_retention=0.2,
    ),
    "keep all": dict(ivr_layer=1, ivr_retention=1.0, ssr_mode="sparse", ssr_layer=3, ssr_retention=1.0),
}
TALKS = {  # pictures in the first and in the second turn of each row
    "picture, picture": [(1, 1)],
    "picture, text": [(1, 0)],
    "text, picture": [(0, 1)],
    "ragged": [(1, 1), (0, 1), (1, 0)],
}


def talk(mini, row, pictures):
    """Both turns of a row, and the whole as the oracle takes it."""
    parts = [mini.prompt(10 * row + turn, count, 4 + row + turn) for turn, count in enumerate(pictures)]
    first = [*parts[0]["ids"], *ANSWER]
    whole = [*first, *parts[1]["ids"]]
    return parts, {"ids": whole, "turns": [len(parts[0]["ids"]), len(whole)], "parts": parts}


def positions(mini, whole, more):
    """Positions of a conversation without padding, and of tokens that follow: [3 or 1, S]."""
    model, ids = mini.model().model, torch.tensor([whole["ids"]])
    if not hasattr(model, "get_rope_index"):
        return torch.arange(ids.shape[1] + more)[None]
    inputs = mini.features(whole["parts"], ids)
    grids = {name: grid for name, grid in inputs.items() if name.endswith("grid_thw")}
    kinds = (ids == model.config.image_token_id).long()
    found = model.get_rope_index(ids, mm_token_type_ids=kinds, **grids)[0] if grids else torch.arange(ids.shape[1])
    found = found.expand(3, 1, -1)[:, 0]
    return torch.cat([found, found.max() + 1 + torch.arange(more).expand(3, -1)], dim=1)


def converse(mini, model, talks):
    """Logits behind the second turn and behind each greedy token after it: [B, new + 1, vocabulary]."""
    batches = [mini.batch([parts[turn] for parts, _ in talks]) for turn in range(2)]
    answer = torch.tensor([ANSWER] * len(talks))
    ones = torch.ones_like(answer)
    mask = torch.cat([batches[0]["attention_mask"], ones, batches[1]["attention_mask"], ones[:, :NEW_TOKENS]], dim=1)
    rows = [positions(mini, whole, NEW_TOKENS) for _, whole in talks]
    places = torch.zeros(len(rows[0]), *mask.shape, dtype=torch.long)
    for row, found in enumerate(rows):
        places[:, row, mask[row].bool()] = found
    places = places[0] if len(places) == 1 else places
    steps, seen, cache = [], 0, None
    for inputs in (batches[0], dict(input_ids=answer), batches[1], *[None] * NEW_TOKENS):
        inputs = inputs or dict(input_ids=steps[-1].argmax(-1, keepdim=True))
        new = slice(seen, seen + inputs["input_ids"].shape[1])
        seen = new.stop
        inputs = {**inputs, "attention_mask": mask[:, :seen], "position_ids": places[..., new]}
        out = model(**inputs, past_key_values=cache)
        cache = out.past_key_values
        steps.append(out.logits[:, -1])
    return torch.stack(steps[2:], dim=1)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("rows", TALKS)
def test_a_second_turn_equals_the_oracle(mini, attention, rows, plan):
    talks = [talk(mini, row, pictures) for row, pictures in enumerate(TALKS[rows])]
    model = mini.model(attention)
    with torch.no_grad(), accelerate(model, halfv_plan(**PLANS[plan])) as run:
        logits = converse(mini, model, talks)
    for row, (parts, whole) in enumerate(talks):
        visual = max(part["ids"].count(mini.model().config.image_token_id) for part in parts)
        _, _, steps, kept = oracle.run(mini, whole, counts(PLANS[plan], visual), NEW_TOKENS)
        torch.testing.assert_close(logits[row], torch.stack(steps), rtol=0, atol=TOLERANCE)
        if TALKS[rows][row][1]:
            pad = run.last.kept[0].shape[1] - len(parts[1]["ids"])
            offset = len(whole["ids"]) - len(parts[1]["ids"]) - pad
            assert [(stage[row].nonzero()[:, 0] + offset).tolist() for stage in run.last.kept] == kept


@torch.no_grad()
def test_keeping_everything_in_both_turns_is_the_untouched_model(mini, attention):
    model = mini.model(attention)
    talks = [talk(mini, row, pictures) for row, pictures in enumerate([(1, 1), (0, 1)])]
    plain = converse(mini, model, talks)
    with accelerate(model, halfv_plan(**PLANS["keep all"])):
        assert torch.equal(converse(mini, model, talks), plain)


@torch.no_grad()
def test_generate_goes_on_with_a_conversation(mini):
    """As people do it: the whole conversation as ids, the cache of the first turn, and only the new picture."""
    if hasattr(mini.model().model, "get_rope_index"):
        pytest.skip("Qwen's own generate cannot place only the new pictures of a longer text")
    model = mini.model()
    parts, whole = talk(mini, 0, (1, 1))
    options = dict(max_new_tokens=NEW_TOKENS + 1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with accelerate(model, halfv_plan(**PLANS["freeze"])):
        cache = model(**mini.batch([parts[0]])).past_key_values
        model(input_ids=torch.tensor([ANSWER]), past_key_values=cache)
        inputs = {**mini.batch([parts[1]]), "input_ids": torch.tensor([whole["ids"]])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        out = model.generate(**inputs, past_key_values=cache, **options)
    visual = parts[0]["ids"].count(model.config.image_token_id)
    _, tokens, steps, _ = oracle.run(mini, whole, counts(PLANS["freeze"], visual), NEW_TOKENS)
    assert out.sequences[0, -NEW_TOKENS - 1 : -1].tolist() == tokens
    torch.testing.assert_close(torch.cat(out.logits), torch.stack(steps), rtol=0, atol=TOLERANCE)
