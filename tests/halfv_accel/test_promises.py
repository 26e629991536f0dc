"""The promises of docs/design.md: keeping everything changes nothing, leaving restores everything, shapes stay."""

import copy

import pytest
import torch
from transformers import DynamicCache

from halfv_accel import HalfVError, accelerate, halfv_plan

PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=4, ssr_retention=0.1)
EVERYTHING = halfv_plan(ivr_layer=1, ivr_retention=1.0, ssr_mode="sparse", ssr_layer=3, ssr_retention=1.0)


def snapshot(model):
    """Every module's own attributes, with hooks by identity and order, and its state dict's keys."""

    def frozen(value):
        if isinstance(value, dict):
            return [(key, id(entry)) for key, entry in value.items()]
        return id(value) if not isinstance(value, (int, bool, str)) else value

    modules = {name: {key: frozen(v) for key, v in vars(m).items()} for name, m in model.named_modules()}
    return modules, list(model.state_dict())


@pytest.mark.parametrize("shapes", [[1], [1, 2], [1, 0]])
def test_keeping_everything_is_bit_exact(mini, attention, shapes):
    model, inputs = mini.model(attention), mini.batch([mini.prompt(i, n) for i, n in enumerate(shapes)])
    options = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        plain, plain_out = model(**inputs).logits, model.generate(**inputs, **options)
        with accelerate(model, EVERYTHING) as run:
            assert torch.equal(model(**inputs).logits, plain)
            out = model.generate(**inputs, **options)
    assert torch.equal(out.sequences, plain_out.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain_out.logits, strict=True))
    assert [stage.after for stage in run.last.stages] == [run.last.visual_tokens] * 2


def test_text_only_passes_through(mini, attention):
    model, inputs = mini.model(attention), mini.batch([mini.prompt(0, 0), mini.prompt(1, 0, 9)])
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with accelerate(model, PLAN) as run:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), plain)
    assert run.last.visual_tokens == [0, 0]
    assert run.last.stages == []


@torch.no_grad()
def test_a_generated_placeholder_is_text(mini):
    """A model can generate the id that stands for a picture; without features it is a token like any other."""
    model = mini.model()
    with accelerate(model, PLAN):
        out = model(**mini.batch([mini.prompt(0)]))
        step = model(input_ids=torch.tensor([[1]]), past_key_values=out.past_key_values)
    assert step.logits.shape[:2] == (1, 1)


def test_leaving_restores_every_module(mini):
    model = mini.model()
    model.generate(**mini.batch([mini.prompt(0)]), max_new_tokens=2)  # lazily made attributes exist now
    before = snapshot(model)
    with accelerate(model, PLAN):
        assert snapshot(model) != before
        model.generate(**mini.batch([mini.prompt(0)]), max_new_tokens=2)
    restored = snapshot(model)
    for state in (before, restored):
        state[0]["model"].pop("rope_deltas", None)  # Qwen's own note of its last prompt
    assert restored == before


def test_leaving_restores_after_exceptions(mini, monkeypatch):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    before = snapshot(model)
    for site in (model.model.language_model.layers[3], model.lm_head):

        def fail(*_):
            raise RuntimeError("inside")

        with pytest.raises(RuntimeError, match="inside"), accelerate(model, PLAN) as run:
            handle = site.register_forward_pre_hook(fail)
            try:
                model(**inputs)
            finally:
                handle.remove()
                assert run.prefill is None  # nothing of the failed prefill leaks into the next forward
    after = snapshot(model)
    for state in (before, after):
        state[0]["model"].pop("rope_deltas", None)
    assert after == before


def test_a_model_works_again_after_a_failed_prefill(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with torch.no_grad(), accelerate(model, PLAN):
        wanted = model(**inputs).logits
        handle = model.model.language_model.layers[3].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs)
        handle.remove()
        assert torch.equal(model(**inputs).logits, wanted)


def test_nesting_is_refused_and_leaves_the_outer_one_working(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with torch.no_grad(), accelerate(model, PLAN) as outer:
        wanted, installed = model(**inputs).logits, snapshot(model)
        with pytest.raises(HalfVError, match="accelerated already"):
            accelerate(model, PLAN).install()
        assert snapshot(model) == installed
        assert torch.equal(model(**inputs).logits, wanted)
        assert outer.last.stages[1].after == [max(1, int(outer.last.visual_tokens[0] * 0.1))]


def test_a_generate_of_ones_own_comes_back(mini):
    model = mini.model()
    model.generate = own = type(model).generate.__get__(model)
    try:
        with accelerate(model, PLAN):
            assert model.generate is not own
        assert model.generate is own
    finally:
        del model.generate


def test_install_and_remove_by_hand(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    plain = model(**inputs).logits
    handle = accelerate(model, PLAN).install()
    assert not torch.equal(model(**inputs).logits, plain)
    handle.remove()
    handle.remove()
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
@pytest.mark.parametrize("capture_first", [True, False])
def test_hidden_states_and_logits_keep_their_shapes(mini, capture_first):
    model, inputs = copy.deepcopy(mini.model()), mini.batch([mini.prompt(0), mini.prompt(1, 2)])
    if capture_first:
        model(**inputs, output_hidden_states=True)
    plain = model(**inputs)
    with accelerate(model, PLAN):
        out = model(**inputs, output_hidden_states=True)
        assert model(**inputs, logits_to_keep=1).logits.shape[1] == 1
    assert out.logits.shape == plain.logits.shape
    assert {state.shape[1] for state in out.hidden_states} == {inputs["input_ids"].shape[1]}


@torch.no_grad()
def test_the_cache_shrinks_and_layer_0_does_not(mini):
    model, prompt = mini.model(), mini.prompt(0)
    inputs = mini.batch([prompt])
    total = len(prompt["ids"])
    for cache in (None, DynamicCache(), DynamicCache(config=model.config)):
        with accelerate(model, PLAN) as run:
            cache = model(**inputs, past_key_values=cache).past_key_values
        lengths = [cache.get_seq_length(layer) for layer in range(6)]
        visual, (ivr, ssr) = run.last.visual_tokens[0], run.last.stages
        assert lengths == [total] * 2 + [total - visual + ivr.after[0]] * 2 + [total - visual + ssr.after[0]] * 2


@torch.no_grad()
def test_frozen_tokens_stay_attended_and_stop_changing(mini):
    model, prompt = mini.model(), mini.prompt(0)
    plan = halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=4)
    with accelerate(model, plan) as run:
        out = model(**mini.batch([prompt]), output_hidden_states=True)
    frozen, alive = run.last.stages[1], run.last.kept[0]
    assert (frozen.then, frozen.after, frozen.before) == ("freeze", [0], run.last.stages[0].after)
    assert torch.equal(out.hidden_states[4][alive], out.hidden_states[5][alive])
    length = len(prompt["ids"]) - run.last.visual_tokens[0] + frozen.before[0]
    assert out.past_key_values.get_seq_length(5) == length


@torch.no_grad()
def test_the_report_counts_what_the_masks_show(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0), mini.prompt(1, 2), mini.prompt(2, 0)])
    with accelerate(model, PLAN) as run:
        model(**inputs)
    assert run.last.visual_tokens == (inputs["input_ids"] == 1).sum(1).tolist()
    for stage, kept in zip(run.last.stages, run.last.kept, strict=True):
        assert kept.shape == inputs["input_ids"].shape
        assert kept.sum(1).tolist() == stage.after
        assert not (kept & (inputs["input_ids"] != 1)).any()
        assert stage.selection_ms >= 0


@torch.no_grad()
def test_rows_do_not_see_each_other(mini):
    """A row of a ragged batch chooses what it chooses alone."""
    model, prompts = mini.model(), [mini.prompt(0), mini.prompt(1, 2)]
    width = max(len(prompt["ids"]) for prompt in prompts)
    with accelerate(model, PLAN) as run:
        model(**mini.batch(prompts))
        together = run.last.kept
        for row, prompt in enumerate(prompts):
            model(**mini.batch([prompt]))
            for stage, kept in enumerate(run.last.kept):
                assert torch.equal(together[stage][row, width - len(prompt["ids"]) :], kept[0])


def test_gradients_flow(mini):
    model, inputs = copy.deepcopy(mini.model()), mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN):
        model(**inputs).logits[:, -1].sum().backward()
    assert model.model.language_model.layers[5].mlp.up_proj.weight.grad.abs().sum() > 0


def test_own_projections_equal_the_models(mini):
    """Keys and values that HalfV computes for frozen tokens are those that the attention computes itself."""
    from halfv_accel.adapters import family_of

    class Seen(Exception):
        pass

    class Trap:
        def update(self, keys, values, *_):
            self.keys, self.values = keys, values
            raise Seen

    model = mini.model()
    family = family_of(model)
    layer, trap = family.layers[2], Trap()
    states = torch.randn(2, 5, 32)
    positions = torch.arange(5)[None].expand(2, 5)
    rotary = family.text.rotary_emb(states, positions if mini.name == "llava" else positions.expand(3, 2, 5))
    with pytest.raises(Seen):
        layer(states, attention_mask=None, position_embeddings=rotary, past_key_values=trap)
    assert torch.equal(family.keys(layer, states, rotary), trap.keys)
    assert torch.equal(family.values(layer, states), trap.values)
