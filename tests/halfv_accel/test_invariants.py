"""Laws of what is selected, on whole models and on random batches."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfv_accel import accelerate, halfv_plan
from halfv_accel.budget import floor_share, token_budget
from halfv_accel.engine.choice import Choice

from .miniatures import MINIATURES

SCORERS = st.sampled_from(["previous", "own"])
RATIOS = st.sampled_from([0.01, 0.05, 0.1, 0.29, 0.5, 0.77, 1.0])


@st.composite
def batches(draw):
    """A family and the rows of a batch: pictures, words of the question, videos."""
    mini = MINIATURES[draw(st.sampled_from(sorted(MINIATURES)))]
    row = st.tuples(st.integers(0, 2), st.integers(3, 8), st.integers(0, 1 if mini.videos else 0))
    shapes = draw(st.lists(row, min_size=1, max_size=4))
    seeds = draw(st.lists(st.integers(0, 99), min_size=len(shapes), max_size=len(shapes), unique=True))
    return mini, [mini.prompt(seed, *shape) for seed, shape in zip(seeds, shapes, strict=True)]


@st.composite
def plans(draw):
    """A plan of HalfV's and its ratios."""
    ivr, anchors, ssr = draw(RATIOS), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])), draw(RATIOS)
    mode, layer = draw(st.sampled_from(["sparse", "freeze", "none"])), draw(st.integers(1, 4))
    last = dict(ssr_layer=draw(st.integers(layer + 1, 5)), ssr_retention=ssr) if mode != "none" else {}
    scorers = dict(zip(("ivr_scored_by", "ssr_scored_by"), draw(st.tuples(SCORERS, SCORERS)), strict=True))
    plan = halfv_plan(ivr_layer=layer, ivr_retention=ivr, anchor_ratio=anchors, ssr_mode=mode, **last, **scorers)
    return plan, (ivr, anchors, ssr)


def select(mini, prompts, plan, side="left"):
    inputs = mini.batch(prompts, side)
    with torch.no_grad(), accelerate(mini.model(), plan) as run:
        logits = mini.model()(**inputs).logits
    return inputs, run.last, logits


def visual_positions(mini, ids):
    config = mini.model().config
    return (ids == config.image_token_id) | (ids == (getattr(config, "video_token_id", None) or -1))


lawful = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@lawful
@given(batches(), plans(), st.sampled_from(["left", "right"]))
def test_budgets_are_met_and_only_visual_tokens_are_touched(batch, plan, side):
    mini, prompts = batch
    inputs, report, logits = select(mini, prompts, plan[0], side)
    visual = visual_positions(mini, inputs["input_ids"]) & inputs["attention_mask"].bool()
    assert report.visual_tokens == visual.sum(1).tolist()
    assert torch.isfinite(logits).all()
    before = visual
    for stage, kept in zip(report.stages, report.kept, strict=True):
        ratio = plan[1][0] if stage.name == "ivr" else plan[1][2]
        budget = [0 if stage.then == "freeze" else token_budget(n, ratio) for n in report.visual_tokens]
        budget = [min(b, n) for b, n in zip(budget, before.sum(1).tolist(), strict=True)]
        assert kept.sum(1).tolist() == stage.after == budget
        assert not (kept & ~before).any()  # neither padding, nor text, nor what is gone already
        before = kept


def test_text_is_never_dropped(mini):
    """Every layer still processes all text tokens, whatever the plan."""
    seen = {}
    model, prompts = mini.model(), [mini.prompt(0), mini.prompt(1, 2)]
    inputs = mini.batch(prompts)
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args, i=i: seen.__setitem__(i, args[0].shape[1]))
        for i, layer in enumerate(model.model.language_model.layers)
    ]
    plan = halfv_plan(ivr_layer=1, ivr_retention=0.01, ssr_mode="freeze", ssr_layer=3)
    with torch.no_grad(), accelerate(model, plan):
        model(**inputs)
    for hook in hooks:
        hook.remove()
    text = (inputs["attention_mask"].bool() & ~visual_positions(mini, inputs["input_ids"])).sum(1).max()
    length = inputs["input_ids"].shape[1]
    assert [seen[i] for i in range(6)] == [length, text + 1, text + 1, text, text, text]


@lawful
@given(batches(), plans(), st.randoms())
def test_permuting_rows_permutes_the_result(batch, plan, random):
    mini, prompts = batch
    order = list(range(len(prompts)))
    random.shuffle(order)
    _, report, logits = select(mini, prompts, plan[0])
    _, shuffled, other = select(mini, [prompts[i] for i in order], plan[0])
    assert [report.visual_tokens[i] for i in order] == shuffled.visual_tokens
    for kept, again in zip(report.kept, shuffled.kept, strict=True):
        assert torch.equal(kept[order], again)
    torch.testing.assert_close(other[:, -1], logits[order, -1], rtol=0, atol=1e-4)


@lawful
@given(batches(), plans())
def test_anchors_are_the_best_scored_and_stay(batch, plan):
    """Recomputed from what the engine shows the strategy: the highest scores survive coverage."""
    mini, prompts = batch
    chosen = []
    select_ = Choice.select

    def spy(self, budget):
        kept, stage, view = select_(self, budget), self.stage, self.view
        if stage.name == "ivr":
            own = stage.strategy.scored_by == "own"
            chosen.append((view.here if own else view.before, stage.layer - (not own), self.candidates, kept, budget))
        return kept

    Choice.select = spy
    try:
        select(mini, prompts, plan[0])
    finally:
        Choice.select = select_
    for seen, scorer, candidates, kept, budget in chosen:
        scores = naive_scores(mini, scorer, seen.states, candidates, prompts)
        for row, (row_scores, count) in enumerate(zip(scores, budget, strict=True)):
            wanted = max(floor_share(count, plan[1][1]), min(count, 1) if plan[1][1] else 0)
            anchors = sorted(row_scores, key=lambda p, s=row_scores: (-s[p], p))[:wanted]
            assert all(kept[row, position] for position in anchors)


def naive_scores(mini, layer, states, candidates, prompts):
    """Per row, position -> mean over heads of the last token's softmax over the visual keys, without rotary."""
    block = mini.model().model.language_model.layers[layer]
    attention, rows = block.self_attn, []
    for row in range(len(prompts)):
        normed = block.input_layernorm(states[row])
        heads = {}
        for name in ("q", "k"):
            projected = getattr(attention, f"{name}_proj")(normed).unflatten(-1, (-1, attention.head_dim))
            norm = getattr(attention, f"{name}_norm", None)
            heads[name] = projected if norm is None else norm(projected)
        places = candidates[row].nonzero()[:, 0].tolist()
        keys = heads["k"][places].repeat_interleave(heads["q"].shape[1] // heads["k"].shape[1], dim=1)
        logits = torch.einsum("hd,phd->hp", heads["q"][-1], keys) / attention.head_dim**0.5
        rows.append(dict(zip(places, logits.softmax(-1).mean(0).tolist(), strict=True)) if places else {})
    return rows
