"""Flash attention's contract, kept on a machine without the kernel: None or a 2-D mask, causal from the end, no gaps.

The emulation below unpads every row as transformers does before it calls the kernel, and refuses what the kernel would
silently misread: a mask that is not 2-D, and position ids with gaps, which it takes for several packed sequences.
"""

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from halfv_accel import accelerate, halfv_plan

PLANS = {
    "prune": halfv_plan(ivr_layer=2, ivr_retention=0.4, anchor_ratio=0.3),
    "sparse": halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=3, ssr_retention=0.1),
}
TOLERANCE = 1e-4  # logits of size about 1, float32: other kernels, other rounding


def like_flash(module, query, key, value, attention_mask, scaling=None, position_ids=None, **_):
    batch, heads, new, _ = query.shape
    if position_ids is not None and batch == 1 and new > 1:
        assert (position_ids.diff() == 1).all(), "flash attention would take this for packed sequences"
    if attention_mask is None:
        attention_mask = torch.ones(batch, key.shape[2], dtype=torch.bool)
    assert attention_mask.shape == (batch, key.shape[2])
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    out = torch.zeros_like(query)
    for row in range(batch):
        keys, queries = attention_mask[row].bool(), attention_mask[row, -new:].bool()
        q, k, v = query[row][:, queries], key[row][:, keys], value[row][:, keys]
        causal = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        out[row][:, queries] = (q @ k.mT * scaling).masked_fill(~causal, -torch.inf).softmax(-1) @ v
    return out.transpose(1, 2), None


@pytest.fixture
def flash(mini, monkeypatch):
    """A model whose text part believes to run flash attention."""
    AttentionInterface.register("flash_attention_emulated", like_flash)
    AttentionMaskInterface.register("flash_attention_emulated", flash_attention_mask)
    model = mini.model()
    config = model.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_emulated")
    return model


def run(model, inputs, plan, **options):
    with torch.no_grad(), accelerate(model, plan) as handle:
        logits = model(**inputs).logits[:, -1]
        options = dict(max_new_tokens=4, do_sample=False, **options)
        tokens = model.generate(**inputs, **options)
    return logits, tokens, handle.last.kept


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("shapes", [[1], [1, 2], [2, 0, 1]], ids=str)
def test_flash_attention_equals_sdpa(mini, plan, shapes, monkeypatch, request):
    inputs = mini.batch([mini.prompt(seed, n, 6 + seed) for seed, n in enumerate(shapes)])
    logits, tokens, kept = run(mini.model(), inputs, PLANS[plan])
    model = request.getfixturevalue("flash")
    flash_logits, flash_tokens, flash_kept = run(model, inputs, PLANS[plan])
    assert all(torch.equal(a, b) for a, b in zip(kept, flash_kept, strict=True))
    torch.testing.assert_close(flash_logits, logits, rtol=0, atol=TOLERANCE)
    assert torch.equal(flash_tokens, tokens)


@torch.no_grad()
def test_several_new_tokens_at_once(mini, flash):
    """A second turn of text on a reduced, padded cache."""
    inputs = mini.batch([mini.prompt(1), mini.prompt(2, 2)])
    more = torch.tensor([[9, 8, 7], [10, 11, 12]])
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
    positions = (mask.cumsum(1) - 1)[:, -3:]
    logits = []
    for pieces in ([more], more.split(1, dim=1)):
        seen = inputs["attention_mask"].shape[1]
        with accelerate(flash, PLANS["sparse"]):
            cache, steps = flash(**inputs).past_key_values, []
            for piece in pieces:
                at = slice(seen - inputs["attention_mask"].shape[1], None)
                seen += piece.shape[1]
                steps.append(
                    flash(
                        input_ids=piece,
                        attention_mask=mask[:, :seen],
                        position_ids=positions[:, at][:, : piece.shape[1]],
                        past_key_values=cache,
                    ).logits
                )
        logits.append(torch.cat(steps, dim=1))
    torch.testing.assert_close(*logits, rtol=0, atol=TOLERANCE)
