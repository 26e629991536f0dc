"""Plans that ask the vision tower, act before the language model, or skip layers, under everything that users do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from halfv_accel import HalfVError, accelerate
from halfv_accel.plan import Plan, Stage

from .refusing import refusal
from .test_bypass import adapted, close
from .test_turns import converse, talk

ASKING = Plan((Stage("first", 0, "visionzip", 0.5), Stage("then", 2, "sparsevlm", 0.2)), skip=(4,))
OTHER = Plan((Stage("only", 0, "prumerge", 0.3),))
PLANS = {"layer 0": OTHER, "skip": Plan((), skip=(0, 2, 3)), "both": ASKING}
OPTIONS = dict(max_new_tokens=3, do_sample=False)


def inputs_of(mini, *pictures):
    return mini.batch([mini.prompt(seed, count, 4 + seed) for seed, count in enumerate(pictures)])


def hooks_of(model):
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


@torch.no_grad()
def alone(model, plan, inputs):
    with accelerate(model, plan) as run:
        return model.generate(**inputs, **OPTIONS), run.last.kept


@torch.no_grad()
def test_a_generate_past_the_guard_is_right_or_refused(mini):
    """The class's own method: where pictures are encoded before the forward, nobody has heard of them."""
    model, inputs = mini.model(), inputs_of(mini, 1, 2)
    wanted, _ = alone(model, OTHER, inputs)
    plain = model.generate(**inputs, **OPTIONS)
    with accelerate(model, OTHER) as run:
        refusal(lambda: type(model).generate(model, **inputs, **OPTIONS), "encoded")
        assert run.last is None
        assert torch.equal(model.generate(**inputs, **OPTIONS), wanted)  # and nothing of it is left
    assert torch.equal(model.generate(**inputs, **OPTIONS), plain)


def test_threads(mini):
    """Prompts of several sizes at once, through one run."""
    model = mini.model()
    batches = [inputs_of(mini, 1), inputs_of(mini, 2, 0, 1), inputs_of(mini, 0), inputs_of(mini, 1, 1)]
    wanted = [alone(model, ASKING, inputs)[0] for inputs in batches]
    with accelerate(model, ASKING), ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda inputs: model.generate(**inputs, **OPTIONS), batches)
            assert all(map(torch.equal, found, wanted))


@torch.no_grad()
def test_nested_runs(mini):
    model, inputs = mini.model(), inputs_of(mini, 1, 2)
    before = hooks_of(model)
    plans = ASKING, OTHER, PLANS["skip"]
    wanted = [alone(model, plan, inputs)[0] for plan in plans]
    plain = model.generate(**inputs, **OPTIONS)
    runs = [accelerate(model, plan) for plan in plans]
    for run, tokens in zip(runs, wanted, strict=True):
        run.install()
        assert torch.equal(model.generate(**inputs, **OPTIONS), tokens)
    runs[1].remove()
    assert torch.equal(model.generate(**inputs, **OPTIONS), wanted[2])
    runs[2].remove()
    assert torch.equal(model.generate(**inputs, **OPTIONS), wanted[0])
    runs[0].remove()
    assert torch.equal(model.generate(**inputs, **OPTIONS), plain)
    assert hooks_of(model) == before


@torch.no_grad()
def test_removing_in_the_middle(mini):
    """Inside a forward it is refused; from another thread it waits for the forward."""
    model, inputs = mini.model(), inputs_of(mini, 1)
    before = hooks_of(model)
    wanted, said = alone(model, OTHER, inputs)[0], []
    with accelerate(model, OTHER) as run:

        def inside(*_):
            with pytest.raises(HalfVError, match="in the middle"):
                run.remove()
            said.append(1)

        handle = model.model.language_model.layers[1].register_forward_pre_hook(inside)
        assert torch.equal(model.generate(**inputs, **OPTIONS), wanted)
        handle.remove()
        assert said
        begun, other = threading.Event(), threading.Thread(target=run.remove)

        def meanwhile(*_):
            if not begun.is_set():
                begun.set()
                other.start()

        handle = model.model.language_model.layers[0].register_forward_pre_hook(meanwhile)
        reduced = model(**inputs).logits
        handle.remove()
        other.join()
    with accelerate(model, OTHER):
        close(model(**inputs).logits, reduced)
    assert hooks_of(model) == before


@torch.no_grad()
def test_an_exception_in_the_tower(mini):
    model, inputs = mini.model(), inputs_of(mini, 1)
    wanted, plain = alone(model, ASKING, inputs)[0], model.generate(**inputs, **OPTIONS)
    towers = [module for name, module in model.named_modules() if name.endswith("mlp") and "language" not in name]

    def fail(*_):
        raise ZeroDivisionError

    with accelerate(model, ASKING):
        handles = [module.register_forward_hook(fail) for module in towers]
        for call in (lambda: model(**inputs), lambda: model.generate(**inputs, **OPTIONS)):
            with pytest.raises(ZeroDivisionError):
                call()
        for handle in handles:
            handle.remove()
        assert torch.equal(model.generate(**inputs, **OPTIONS), wanted)
    assert torch.equal(model.generate(**inputs, **OPTIONS), plain)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_peft_model(mini):
    model, merged = adapted(mini.model())
    inputs = inputs_of(mini, 1, 2)
    wanted, kept = alone(merged, ASKING, inputs)
    with torch.no_grad(), accelerate(model, ASKING) as run:
        assert torch.equal(model.generate(**inputs, **OPTIONS), wanted)
        assert all(map(torch.equal, run.last.kept, kept))


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS)
def test_text_alone_is_the_untouched_model(mini, plan):
    model, inputs = mini.model(), inputs_of(mini, 0, 0)
    plain, tokens = model(**inputs).logits, model.generate(**inputs, **OPTIONS)
    with accelerate(model, PLANS[plan]) as run:
        assert torch.equal(model(**inputs).logits, plain)
        assert torch.equal(model.generate(**inputs, **OPTIONS), tokens)
        assert run.last.visual_tokens == [0, 0] and run.last.stages == []
        model.generate(**inputs_of(mini, 1), **OPTIONS)
        assert torch.equal(model(**inputs).logits, plain)  # nothing of the pictures before is left


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS)
def test_embeddings_beside_pixels_are_refused(mini, plan):
    model, inputs = mini.model(), inputs_of(mini, 1)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with accelerate(model, PLANS[plan]):
        refusal(lambda: model.generate(**inputs, inputs_embeds=embeds, **OPTIONS), "inputs_embeds")
        refusal(lambda: model(**rest, inputs_embeds=embeds), "input_ids")
        model.generate(**inputs, **OPTIONS)


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS)
def test_beams_of_a_ragged_batch(mini, plan):
    """Each row has the beams that it has alone."""
    model, prompts = mini.model(), [mini.prompt(0, 1, 4), mini.prompt(1, 2, 7), mini.prompt(2, 0, 9)]
    beams = dict(max_new_tokens=3, num_beams=3, num_return_sequences=2, do_sample=False)
    beams |= dict(return_dict_in_generate=True, output_scores=True)
    with accelerate(model, PLANS[plan]) as run:
        out = model.generate(**mini.batch(prompts), **beams)
        kept = run.last.kept
        for row, prompt in enumerate(prompts):
            one = model.generate(**mini.batch([prompt]), **beams)
            mine = slice(2 * row, 2 * row + 2)
            assert torch.equal(out.sequences[mine, -3:], one.sequences[:, -3:])
            close(out.sequences_scores[mine], one.sequences_scores)
            for stage, wanted in zip(kept, run.last.kept, strict=False):  # none ran on a row without pictures
                assert torch.equal(stage[3 * row, -len(prompt["ids"]) :], wanted[0])  # three beams begin alike


@torch.no_grad()
def test_a_second_turn_asks_the_tower_about_its_own_picture(mini):
    """On the cache of the first, which had another one: what is kept of it is what is kept without a first turn."""
    model, talks = mini.model(), [talk(mini, row, pictures) for row, pictures in enumerate([(1, 1), (0, 1), (2, 1)])]
    second = mini.batch([parts[1] for parts, _ in talks])
    with accelerate(model, OTHER) as run:
        model(**second)
        wanted = run.last.kept[0]
        converse(mini, model, talks)
        assert torch.equal(run.last.kept[0], wanted) and wanted.any(1).all()
