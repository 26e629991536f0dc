"""What trials say of plans is what `accelerate` does with them, one plan and one prompt at a time."""

import functools
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_accel import Downsample, HalfVError, Plan, Stage, accelerate, halfv_plan
from halfv_probe.trials.replies import Replies, greedy_replies
from halfv_probe.trials.walk import run_trials
from tests.halfv_accel.miniatures import LAYERS, MINIATURES
from tests.halfv_accel.test_matrix import PLANS as EVERY
from tests.halfv_probe.measures.test_replay import most_states_held

REPLY = 4
TOLERANCE = 2e-5  # nats, float32


def rows_of(mini):
    """Seed, pictures, words and videos of each prompt; the last one has nothing to see."""
    return [(0, 1, 6, int(mini.videos)), (1, 2, 9, 0), (2, 1, 3, 0), (3, 0, 5, 0)]


@functools.cache
def slow(mini, row, plan):
    """Greedy tokens of the (accelerated) model, and its log-probabilities along the untouched model's tokens."""
    model, inputs = mini.model(), mini.batch([mini.prompt(*row)])
    width = inputs["input_ids"].shape[1]
    options = dict(max_new_tokens=REPLY, do_sample=False, output_logits=True, return_dict_in_generate=True)
    lead = [] if plan is None else slow(mini, row, None)[0]
    with nullcontext() if plan is None else accelerate(model, plan):
        free = model.generate(**inputs, **options)
        led = free
        if plan is not None:
            led = model.generate(**inputs, **options, prefix_allowed_tokens_fn=lambda _, ids: [lead[len(ids) - width]])
    logits = torch.cat(led.logits).double()
    return free.sequences[0, width:].tolist(), logits.log_softmax(-1)


def expected(mini, row, plan, tokens):
    """Is the reply's beginning of so many tokens unchanged, and the mean KL over it."""
    (reply, untouched), (mine, changed) = slow(mini, row, None), slow(mini, row, plan)
    kl = (untouched.exp() * (untouched - changed)).sum(-1)[:tokens].mean()
    return mine[:tokens] == reply[:tokens], float(kl)


def trials(mini, rows, lengths, plans):
    """Trials of a batch whose replies are cut to these lengths."""
    inputs = mini.batch([mini.prompt(*row) for row in rows])
    replies = [slow(mini, row, None)[0][:length] for row, length in zip(rows, lengths, strict=True)]
    return run_trials(mini.model(), inputs, Replies(replies), plans)


def are_what_accelerate_does(mini, rows, lengths, plans):
    found = trials(mini, rows, lengths, plans)
    for number, plan in enumerate(plans):
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            same, kl = expected(mini, row, plan, length)
            assert bool(found.same[number, place]) == same
            assert found.kl[number, place].item() == pytest.approx(kl, rel=1e-3, abs=TOLERANCE)
    return found


def prune(layer, retention=0.5, **ssr):
    return halfv_plan(ivr_layer=layer, ivr_retention=retention, anchor_ratio=0.2, **ssr)


def freeze(layer, at, retention=0.5):
    return prune(layer, retention, ssr_mode="freeze", ssr_layer=at)


def sparse(layer, at, retention=0.5, kept=0.1):
    return prune(layer, retention, ssr_mode="sparse", ssr_layer=at, ssr_retention=kept)


PLANS = [
    prune(1),
    prune(1, 0.2),
    prune(5),
    sparse(1, 3),
    sparse(1, 2),
    sparse(1, 3, kept=0.3),
    freeze(1, 4),
    freeze(1, 1),
    freeze(1, 5),
    freeze(1, 3, retention=1.0),
    freeze(5, 5),
    prune(1),
]
layers = st.integers(1, LAYERS - 1)
kinds = st.one_of(
    st.builds(prune, layers, st.sampled_from([0.2, 0.5, 1.0])),
    st.tuples(layers, layers).map(lambda two: freeze(*sorted(two))),
    st.tuples(layers, layers).filter(lambda two: two[0] != two[1]).map(lambda two: sparse(*sorted(two))),
)


def test_a_prompt_alone(mini):
    for row in rows_of(mini)[:2]:
        found = are_what_accelerate_does(mini, [row], [REPLY], PLANS)
        assert found.kl.max() > 0.01 and not found.same.all()  # or the comparison would show nothing


def test_a_ragged_batch_with_ragged_replies(mini):
    are_what_accelerate_does(mini, rows_of(mini), [2, REPLY, 1, 3], PLANS)


@pytest.mark.parametrize("name", MINIATURES)
@given(plans=st.lists(kinds, min_size=1, max_size=6))
@settings(max_examples=8)
def test_any_plans(name, plans):
    mini = MINIATURES[name]
    are_what_accelerate_does(mini, rows_of(mini)[1:], [REPLY, 1, 2], plans)


def test_a_plan_that_shrinks_pictures_is_refused(mini):
    plans = [halfv_plan(ivr_layer=1, ivr_retention=0.3), Plan((), downsample=Downsample(0.5))]
    with pytest.raises(HalfVError, match=r"plan\.inside"):
        trials(mini, rows_of(mini)[:1], [REPLY], plans)


def test_the_reference_fidelity(mini):
    plans = [halfv_plan(ivr_layer=layer, ivr_retention=0.3, fidelity="reference") for layer in (1, 3)]
    found = are_what_accelerate_does(mini, rows_of(mini)[:2], [REPLY, 2], plans)
    others = [halfv_plan(ivr_layer=layer, ivr_retention=0.3) for layer in (1, 3)]
    assert not torch.equal(found.kl, trials(mini, rows_of(mini)[:2], [REPLY, 2], others).kl)
    with pytest.raises(HalfVError, match="both fidelities"):
        trials(mini, rows_of(mini)[:1], [1], [*plans, *others])


def test_keeping_everything_changes_nothing(mini):
    found = trials(mini, rows_of(mini), [REPLY] * 4, [prune(2, 1.0), freeze(5, 5, 1.0)])
    assert found.same[0].all() and found.kl[0].max() < TOLERANCE
    assert found.same[:, -1].all() and found.kl[:, -1].max() < TOLERANCE  # a prompt without a picture


@given(order=st.permutations(range(len(PLANS))))
@settings(max_examples=10)
def test_neither_the_order_of_plans_nor_their_company_matters(order):
    mini = MINIATURES["qwen3-vl"]
    rows = rows_of(mini)[1:3]
    together = trials(mini, rows, [REPLY, 2], PLANS)
    shuffled = trials(mini, rows, [REPLY, 2], [PLANS[number] for number in order])
    assert torch.equal(shuffled.same, together.same[order])
    assert torch.equal(shuffled.kl, together.kl[order])
    alone = trials(mini, rows, [REPLY, 2], [PLANS[order[0]]])
    assert torch.equal(alone.kl[0], together.kl[order[0]])


def test_plans_share_the_layers_before_they_part(mini, monkeypatch):
    calls = []
    for layer in mini.model().model.language_model.layers:
        mlp = layer.mlp.forward
        monkeypatch.setattr(layer.mlp, "forward", lambda x, mlp=mlp: calls.append(0) or mlp(x))
    trials(mini, rows_of(mini)[:1], [REPLY], PLANS)
    begun = {
        (layer, tuple(stage for stage in plan.stages if stage.layer <= layer))
        for plan in PLANS
        for layer in range(LAYERS)
    }
    assert len(calls) == LAYERS + len(begun)  # the untouched model, and every layer once for what is done before it
    assert len(begun) < LAYERS * len(PLANS)


def test_memory_does_not_grow_with_depth_or_with_plans():
    def question(plans):
        return lambda model, inputs: run_trials(model, inputs, Replies([[5], [6], [7]]), plans)

    assert most_states_held(4, question(PLANS[3:4])) == most_states_held(12, question([*PLANS, *PLANS]))


def test_trials_judge_the_replies_that_the_model_gives(mini):
    inputs = mini.batch([mini.prompt(*row) for row in rows_of(mini)])
    replies = greedy_replies(mini.model(), inputs, REPLY)
    assert replies.ids == [slow(mini, row, None)[0] for row in rows_of(mini)]


def test_the_model_comes_out_as_it_went_in(mini, untouched, breaking):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with untouched(model):
        run_trials(model, inputs, Replies([[5, 6]]), PLANS)
    with breaking(model), untouched(model), pytest.raises(RuntimeError, match="broken"):
        run_trials(model, inputs, Replies([[5, 6]]), PLANS)


def test_a_layer_that_the_model_does_not_have_is_refused():
    mini = MINIATURES["llava"]
    with pytest.raises(HalfVError, match=f"layer {LAYERS}.*choose a layer"):
        trials(mini, rows_of(mini)[:1], [REPLY], [prune(LAYERS)])


@pytest.mark.parametrize("name", ["llava-next-mistral", "qwen3-vl", "video-llava"])
def test_plans_of_every_method_share_one_walk(name):
    """Whatever they ask of the tower, the pictures or the prompt, merge or skip: a reply behind it is not for them."""
    mini = MINIATURES[name]
    are_what_accelerate_does(mini, rows_of(mini)[:2], [2, 1], list(EVERY.values()))


def short_and_long(mini):
    """Plans that leave none of the first two of `rows_of` alone, one of them, or both."""
    few, many = sorted(slow_report(mini, row, prune(1)).visual_tokens[0] for row in rows_of(mini)[:2])
    assert few < many
    plans = [prune(1), sparse(1, 3), Plan((), skip=(2, 3))]
    return [replace(plan, min_visual_tokens=least) for plan in plans for least in (few, many, many + 1)]


def slow_report(mini, row, plan):
    with torch.no_grad(), accelerate(mini.model(), plan) as run:
        mini.model()(**mini.batch([mini.prompt(*row)]))
    return run.last


@pytest.mark.parametrize("name", ["llava", "qwen3-vl"])
def test_prompts_that_a_plan_spares_are_spared(name):
    mini = MINIATURES[name]
    are_what_accelerate_does(mini, rows_of(mini)[:2], [REPLY, 2], short_and_long(mini))


@pytest.mark.parametrize("name", ["llava-next-vicuna", "qwen2.5-vl"])
def test_what_stages_leave_is_counted(name):
    mini = MINIATURES[name]
    adaptive = Plan((Stage("outliers", 0, "prumerge", 0.9, least=0.1), Stage("then", 2, "fastv", 0.3)))
    plans = [*EVERY.values(), *PLANS, *short_and_long(mini), adaptive]
    rows = rows_of(mini)[:2]
    found = trials(mini, rows, [1, REPLY], plans)
    for plan, kept in zip(plans, found.kept, strict=True):
        for place, row in enumerate(rows):
            assert [after[place] for after in kept] == [s.after[0] for s in slow_report(mini, row, plan).stages]
