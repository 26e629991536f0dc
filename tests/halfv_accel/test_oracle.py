"""An accelerated model computes what the slow masked oracle computes: logits, greedy tokens, and chosen tokens."""

import functools

import pytest
import torch

from halfv_accel import accelerate, halfv_plan

from . import oracle
from .miniatures import IMAGE, MINIATURES, VIDEO

TOLERANCE = 1e-4  # largest difference between logits of size about 1, float32; a wrong mask gives more than 1e-1
NEW_TOKENS = 2

PLANS = {
    "prune, no anchors": dict(ivr_layer=1, ivr_retention=0.3, anchor_ratio=0.0),
    "prune, one anchor": dict(ivr_layer=1, ivr_retention=0.3, anchor_ratio=0.01),
    "prune": dict(ivr_layer=2, ivr_retention=0.4, anchor_ratio=0.3),
    "prune late": dict(ivr_layer=5, ivr_retention=0.6, anchor_ratio=0.1),
    "sparse": dict(ivr_layer=1, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="sparse", ssr_layer=3, ssr_retention=0.1),
    "sparse next": dict(ivr_layer=2, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=3, ssr_retention=0.2),
    "sparse late": dict(ivr_layer=3, ivr_retention=0.7, ssr_mode="sparse", ssr_layer=5, ssr_retention=0.1),
    "own scores": dict(
        ivr_layer=1,
        ivr_retention=0.5,
        anchor_ratio=0.4,
        ssr_mode="sparse",
        ssr_layer=3,
        ssr_retention=0.2,
        ivr_scored_by="own",
        ssr_scored_by="own",
    ),
    "freeze": dict(ivr_layer=2, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=4),
    "freeze at once": dict(ivr_layer=2, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=2),
    "freeze early": dict(ivr_layer=1, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=2),
    "freeze all": dict(ivr_layer=1, ivr_retention=1.0, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=3),
}
BATCHES = {  # (pictures, words in the question, videos) of each row
    "single": [(1, 6, 0)],
    "ragged": [(1, 6, 0), (2, 9, 0), (0, 7, 0), (0, 3, 1), (1, 5, 1)],
    "equal": [(1, 6, 0), (1, 6, 0)],
    "two pictures": [(2, 5, 0)],
    "video": [(0, 5, 1)],
    "picture and videos": [(1, 4, 2)],
}


def counts(plan, visual):
    """The plan in token counts, by the paper's rounding: whole tokens, at least one."""
    kept = max(1, int(visual * plan["ivr_retention"] + 1e-6))
    ratio = plan.get("anchor_ratio", 0.1)
    spec = {"ivr": (plan["ivr_layer"], kept, max(int(kept * ratio + 1e-6), int(ratio > 0)))}
    spec["own"] = [
        name for name, key in (("ivr", "ivr_scored_by"), ("sparse", "ssr_scored_by")) if plan.get(key) == "own"
    ]
    if plan.get("ssr_mode") == "sparse":
        spec["sparse"] = (plan["ssr_layer"], max(1, int(visual * plan["ssr_retention"] + 1e-6)))
    if plan.get("ssr_mode") == "freeze":
        spec["freeze"] = plan["ssr_layer"]
    return {**spec, "reference": plan.get("fidelity") == "reference"}


def is_visual(prompt):
    return torch.tensor([token in (IMAGE, VIDEO) for token in prompt["ids"]])


@functools.cache
def slow(mini, row, plan, new_tokens):
    prompt = mini.prompt(*row)
    return oracle.run(mini, prompt, counts(dict(plan), int(is_visual(prompt).sum())), new_tokens)


def expected(mini, rows, plan, new_tokens=NEW_TOKENS):
    """The oracle's results for each row; both attention implementations are held against the same ones."""
    return [slow(mini, row, tuple(plan.items()), new_tokens) for row in rows]


def rows_of(mini, batch):
    """Arguments of `prompt` for each row of a batch that the family can take."""
    return [(seed, *shape) for seed, shape in enumerate(BATCHES[batch]) if mini.videos or not shape[2]]


def kept_positions(kept, row, offset):
    return [(stage[row].nonzero()[:, 0] - offset).tolist() for stage in kept]


def generation_equals_the_oracle(mini, attention, plan, rows):
    prompts = [mini.prompt(*row) for row in rows]
    model, inputs = mini.model(attention), mini.batch(prompts)
    with torch.no_grad(), accelerate(model, halfv_plan(**plan)) as run:
        out = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS + 1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    width = inputs["input_ids"].shape[1]
    for row, (_, tokens, steps, kept) in enumerate(expected(mini, rows, plan)):
        offset = width - len(prompts[row]["ids"])
        assert kept_positions(run.last.kept, row, offset) == (kept or [[] for _ in run.last.stages])
        torch.testing.assert_close(
            torch.stack([step[row] for step in out.logits]), torch.stack(steps), rtol=0, atol=TOLERANCE
        )
        assert out.sequences[row, width : width + NEW_TOKENS].tolist() == tokens


@pytest.mark.parametrize("batch", ["single", "ragged"])
@pytest.mark.parametrize("plan", PLANS)
def test_generation_equals_the_oracle(mini, attention, plan, batch):
    generation_equals_the_oracle(mini, attention, PLANS[plan], rows_of(mini, batch))


@pytest.mark.parametrize("batch", ["equal", "two pictures"])
@pytest.mark.parametrize("plan", ["sparse", "freeze"])
def test_several_pictures_equal_the_oracle(mini, attention, plan, batch):
    generation_equals_the_oracle(mini, attention, PLANS[plan], rows_of(mini, batch))


@pytest.mark.parametrize("mini", [mini for mini in MINIATURES.values() if mini.videos], ids=lambda mini: mini.name)
@pytest.mark.parametrize("batch", ["video", "picture and videos"])
@pytest.mark.parametrize("plan", ["sparse", "freeze"])
def test_videos_equal_the_oracle(mini, attention, plan, batch):
    generation_equals_the_oracle(mini, attention, PLANS[plan], rows_of(mini, batch))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("plan", ["sparse", "freeze"])
def test_forward_gives_all_text_logits(mini, attention, plan, use_cache, side):
    rows = [(5, 1, 6, 0), (6, 2, 4, 0), (7, 0, 9, int(mini.videos))]
    prompts = [mini.prompt(*row) for row in rows]
    model, inputs = mini.model(attention), mini.batch(prompts, side)
    with torch.no_grad(), accelerate(model, halfv_plan(**PLANS[plan])):
        logits = model(**inputs, use_cache=use_cache).logits
    assert logits.shape[:2] == inputs["input_ids"].shape
    for row, (wanted, *_) in enumerate(expected(mini, rows, PLANS[plan], 0)):
        offset = logits.shape[1] - len(wanted) if side == "left" else 0
        text = ~is_visual(prompts[row])
        mine = logits[row, offset : offset + len(wanted)]
        torch.testing.assert_close(mine[text], wanted[text], rtol=0, atol=TOLERANCE)


REFERENCE = {
    "states": dict(PLANS["prune, no anchors"], ivr_layer=5, ivr_retention=0.6),  # no anchors: only states count
    "anchors": dict(PLANS["prune"], anchor_ratio=1.0),  # only scores without 1/sqrt(d) count
    "both": PLANS["prune"],
    "sparse": PLANS["sparse"],
}


@pytest.mark.parametrize(
    "mini", [MINIATURES[name] for name in ("llava", "qwen2.5-vl", "qwen3-vl")], ids=lambda mini: mini.name
)
@pytest.mark.parametrize("plan", REFERENCE)
def test_reference_fidelity_equals_the_reference_oracle(mini, plan):
    rows = [(seed,) for seed in range(6)]
    prompts = [mini.prompt(*row) for row in rows]
    kept = {}
    for fidelity in ("paper", "reference"):
        options = dict(REFERENCE[plan], fidelity=fidelity)
        with torch.no_grad(), accelerate(mini.model(), halfv_plan(**options)) as run:
            mini.model()(**mini.batch(prompts))
        kept[fidelity] = [kept_positions(run.last.kept, row, 0) for row in range(len(prompts))]
        assert kept[fidelity] == [wanted for *_, wanted in expected(mini, rows, options, 0)]
    assert kept["paper"] != kept["reference"]  # or the comparison would show nothing


@pytest.mark.parametrize("options", [dict(num_beams=3), dict(num_beams=2, num_return_sequences=2)])
def test_beams_of_a_ragged_batch_equal_beams_row_by_row(mini, options):
    prompts = [mini.prompt(1, 1, 5), mini.prompt(2, 2, 8)]
    model = mini.model()
    options = dict(max_new_tokens=5, do_sample=False, **options)
    returned = options.get("num_return_sequences", 1)
    with torch.no_grad(), accelerate(model, halfv_plan(**PLANS["freeze"])):
        together = model.generate(**mini.batch(prompts), **options)[:, -5:]
        for row, prompt in enumerate(prompts):
            alone = model.generate(**mini.batch([prompt]), **options)[:, -5:]
            assert torch.equal(together[row * returned : (row + 1) * returned], alone)


@pytest.mark.parametrize("plan", ["sparse", "freeze"])
def test_sampling_is_that_of_the_same_logits(mini, plan):
    """Tokens sampled from a ragged batch: each row alone, led along the same tokens, has the same logits."""
    model, prompts = mini.model(), [mini.prompt(1), mini.prompt(2, 2)]
    options = dict(max_new_tokens=6, do_sample=True, output_logits=True, return_dict_in_generate=True)
    with accelerate(model, halfv_plan(**PLANS[plan])):
        torch.manual_seed(7)
        together = model.generate(**mini.batch(prompts), **options)
        for row, prompt in enumerate(prompts):
            drawn = together.sequences[row, -6:].tolist()
            lead = dict(enumerate(drawn, len(prompt["ids"])))  # by the length of the sequence so far
            alone = model.generate(
                **mini.batch([prompt]), **options, prefix_allowed_tokens_fn=lambda _, ids, lead=lead: [lead[len(ids)]]
            )
            assert alone.sequences[0, -6:].tolist() == drawn
            for mine, wanted in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(mine[row], wanted[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("plan", ["prune", "freeze"])
def test_several_tokens_on_a_reduced_cache_equal_one_at_a_time(mini, attention, plan):
    """A second text turn feeds many tokens at once."""
    prompts = [mini.prompt(1), mini.prompt(2, 2)]
    model, inputs = mini.model(attention), mini.batch(prompts)
    more = torch.tensor([[9, 8, 7], [10, 11, 12]])
    with torch.no_grad(), accelerate(model, halfv_plan(**PLANS[plan])):
        together = continue_text(model, inputs, [more])
        separately = continue_text(model, inputs, more.split(1, dim=1))
    torch.testing.assert_close(together, separately, rtol=0, atol=TOLERANCE)


def continue_text(model, inputs, pieces):
    out = model(**inputs)
    mask, logits = inputs["attention_mask"], []
    for piece in pieces:
        mask = torch.cat([mask, torch.ones_like(piece)], dim=1)
        positions = (mask.cumsum(1) - 1)[:, -piece.shape[1] :]
        step = model(input_ids=piece, attention_mask=mask, past_key_values=out.past_key_values, position_ids=positions)
        logits.append(step.logits)
    return torch.cat(logits, dim=1)
