"""Attention balance against the maps that an eager model returns, counted with loops."""

import pytest
import torch

from halfv_accel import HalfVError
from halfv_probe.measures import attention as module
from halfv_probe.measures.attention import attention_balance, watch_attention
from halfv_probe.measures.tokens import tokens_of
from tests.halfv_accel.miniatures import IMAGE, MINIATURES, VIDEO

FIELDS = ("text_to_visual", "text_to_text", "last_to_visual", "last_to_text")


@torch.no_grad()
def maps(mini, inputs):
    """Head-mean attention of the eager model itself: [L, B, S, S]."""
    reported = mini.model("eager")(**inputs, output_attentions=True).attentions
    return torch.stack(reported).double().mean(dim=2)


def kinds(mini, inputs):
    """Each prompt's visual and text positions, from the ids."""
    placeholders = {IMAGE, VIDEO} if mini.videos else {IMAGE}
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        real = [i for i, present in enumerate(mask) if present]
        yield [i for i in real if ids[i] in placeholders], [i for i in real if ids[i] not in placeholders]


def slow_balance(mini, inputs):
    """[L, 4], in the order of the fields."""
    rows = []
    for layer in maps(mini, inputs):
        prompts = []
        for weights, (visual, text) in zip(layer.tolist(), kinds(mini, inputs), strict=True):
            asked = [i for i in text if i > min(visual)]
            shares = [sum(sum(weights[i][j] for j in kind) for i in asked) / len(asked) for kind in (visual, text)]
            prompts.append([*shares, *(sum(weights[max(text)][j] for j in kind) for kind in (visual, text))])
        rows.append(torch.tensor(prompts).mean(dim=0))
    return torch.stack(rows)


def batches(mini):
    """A single prompt, ragged ones padded on either side, and a video where the family takes one."""
    yield mini.batch([mini.prompt(0)])
    ragged = [mini.prompt(1, 2), mini.prompt(2, 1, 9, videos=int(mini.videos))]
    yield mini.batch(ragged)
    yield mini.batch(ragged, side="right")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_balance_is_counted_from_the_models_own_maps(mini, kernel):
    for inputs in batches(mini):
        measured = attention_balance(mini.model(kernel), inputs)
        expected = slow_balance(mini, inputs)
        for column, field in enumerate(FIELDS):
            torch.testing.assert_close(getattr(measured, field), expected[:, column].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entries", [1, 4 * 200 * 3])
def test_rows_are_the_models_own_however_few_at_a_time(mini, monkeypatch, entries):
    monkeypatch.setattr(module, "ENTRIES", entries)
    for inputs in batches(mini):
        model, expected = mini.model(), maps(mini, inputs)
        tokens = tokens_of(module.family_of(model), inputs)
        asked = tokens.visual | tokens.text
        seen = torch.full_like(expected, torch.nan)

        def see(layer, positions, rows, seen=seen):
            assert rows.shape[1] == len(positions)
            seen[layer][:, positions] = rows.double()

        with watch_attention(module.family_of(model), asked, see), torch.no_grad():
            model(**inputs, use_cache=False)
        torch.testing.assert_close(seen[:, asked], expected[:, asked], rtol=1e-4, atol=1e-6)


def test_shares_sum_to_one_and_a_batch_is_the_mean_of_its_prompts(mini):
    model, prompts = mini.model(), [mini.prompt(0), mini.prompt(1, 2)]
    together = attention_balance(model, mini.batch(prompts))
    alone = [attention_balance(model, mini.batch([prompt])) for prompt in prompts]
    for field in FIELDS:
        mean = torch.stack([getattr(one, field) for one in alone]).mean(dim=0)
        torch.testing.assert_close(getattr(together, field), mean, rtol=1e-4, atol=1e-6)
    ones = torch.ones_like(together.text_to_text)
    torch.testing.assert_close(together.text_to_visual + together.text_to_text, ones, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.last_to_visual + together.last_to_text, ones, rtol=0, atol=1e-6)


def test_the_model_comes_out_as_it_went_in(mini, untouched, breaking):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with untouched(model):
        attention_balance(model, inputs)
    with breaking(model), untouched(model), pytest.raises(RuntimeError, match="broken"):
        attention_balance(model, inputs)


def test_what_cannot_be_measured_is_refused():
    mini = MINIATURES["llava"]
    model, prompt = mini.model(), mini.prompt(0)
    with pytest.raises(HalfVError, match="prompt 1 of the batch holds no visual token"):
        attention_balance(model, mini.batch([prompt, mini.prompt(1, 0)]))
    with pytest.raises(HalfVError, match="ends in a visual token"):
        attention_balance(model, mini.batch([{**prompt, "ids": prompt["ids"][:-8]}]))
    with pytest.raises(HalfVError, match="2-D mask"):
        attention_balance(model, {**mini.batch([prompt]), "attention_mask": torch.ones(1, 1, 3, 3)})
    with pytest.raises(HalfVError, match="input_ids"):
        attention_balance(model, {"pixel_values": prompt["pixel_values"]})
    try:
        model.model.language_model.config._attn_implementation = "flex_attention"
        with pytest.raises(HalfVError, match=r"flex_attention.*set_attn_implementation"):
            attention_balance(model, mini.batch([prompt]))
    finally:
        model.set_attn_implementation("sdpa")


def test_a_placeholder_without_features_is_text():
    mini = MINIATURES["qwen2.5-vl"]
    inputs = mini.batch([{**mini.prompt(0), "ids": [VIDEO, *mini.prompt(0)["ids"]]}])
    tokens = tokens_of(module.family_of(mini.model()), inputs)
    assert tokens.text[0, 0]
    assert tokens.first.tolist() == [0]
    assert tokens.last.tolist() == [inputs["input_ids"].shape[1] - 1]
