"""Leaving restores the model: after any nesting, any exception, any order of removal, and after a thousand calls."""

import copy
import functools
import gc
import io
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfv_accel import HalfVError, accelerate, halfv_plan

from .miniatures import MINIATURES
from .refusing import refusal

PLANS = (
    halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="sparse", ssr_layer=4, ssr_retention=0.1),
    halfv_plan(ivr_layer=1, ivr_retention=0.3, ssr_mode="freeze", ssr_layer=3),
    halfv_plan(ivr_layer=3, ivr_retention=0.2),
)
PLAN = PLANS[0]


def snapshot(model):
    """Class, every module's own attributes with hooks by identity and order, and the state dict's keys and places."""

    def frozen(value):
        if isinstance(value, dict):
            return [(key, id(entry)) for key, entry in value.items()]
        return id(value) if not isinstance(value, (int, bool, str)) else value

    modules = {name: {key: frozen(v) for key, v in vars(m).items()} for name, m in model.named_modules()}
    modules["model"].pop("rope_deltas", None)  # Qwen's own note of its last prompt
    return type(model), modules, {key: value.data_ptr() for key, value in model.state_dict().items()}


class Failure(Exception):
    pass


def fail_at(model, layer, inputs):
    """A forward that breaks off in front of a decoder layer."""

    def fail(*_):
        raise Failure

    handle = model.model.language_model.layers[layer].register_forward_pre_hook(fail)
    try:
        with pytest.raises(Failure):
            model(**inputs)
    finally:
        handle.remove()


steps = st.one_of(
    st.tuples(st.just("install"), st.integers(0, 2)),
    st.tuples(st.just("remove"), st.integers(0, 4)),
    st.tuples(st.just("remove twice"), st.integers(0, 4)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
)


@pytest.mark.parametrize("mini", MINIATURES.values(), ids=MINIATURES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(program=st.lists(steps, max_size=8))
def test_nested_runs_in_any_order(mini, program):
    """At every moment the newest run works alone, and in the end nothing is left of any."""
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    alone = expected(mini.name)
    model.generate(**inputs, max_new_tokens=1)  # attributes that the model itself makes lazily exist now
    before, runs = snapshot(model), []
    with torch.no_grad():
        try:
            for step, which in program:
                if step == "install":
                    runs.append((which, accelerate(model, PLANS[which]).install()))
                elif step == "fail":
                    fail_at(model, which, inputs)
                elif runs:
                    _, run = runs.pop(which % len(runs))
                    for _ in range(2 if step == "remove twice" else 1):
                        run.remove()
                assert torch.equal(model(**inputs).logits, alone[runs[-1][0] if runs else None])
        finally:
            for _, run in runs:
                run.remove()
    assert snapshot(model) == before
    assert torch.equal(model(**inputs).logits, alone[None])


@functools.cache
def expected(name):
    """Logits of the untouched model and of each plan alone."""
    mini = MINIATURES[name]
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with torch.no_grad():
        alone = {None: model(**inputs).logits}
        for index, plan in enumerate(PLANS):
            with accelerate(model, plan):
                alone[index] = model(**inputs).logits
    logits = list(alone.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(logits) for b in logits[:i])
    return alone


@pytest.mark.parametrize("site", [0, 1, 2, 3, 5, "lm_head"])
def test_leaving_by_an_exception_in_the_middle_of_a_prefill(mini, site):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    model(**inputs)
    before = snapshot(model)
    module = model.lm_head if site == "lm_head" else model.model.language_model.layers[site]

    def fail(*_):
        raise Failure

    with pytest.raises(Failure), accelerate(model, PLAN) as run:
        handle = module.register_forward_pre_hook(fail)
        try:
            model(**inputs)
        finally:
            handle.remove()
            assert run.forward is None  # nothing of the failed prefill leaks into the next forward
    assert snapshot(model) == before


def test_a_model_works_again_after_a_failed_prefill(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with torch.no_grad(), accelerate(model, PLAN):
        wanted = model(**inputs).logits
        fail_at(model, 3, inputs)
        assert torch.equal(model(**inputs).logits, wanted)


def test_a_half_finished_installation_unwinds(mini, monkeypatch):
    model = mini.model()
    before = snapshot(model)

    def fail(*_, **__):
        raise Failure

    with monkeypatch.context() as patch:
        patch.setattr(model.model.language_model.layers[4], "register_forward_hook", fail)
        with pytest.raises(Failure):
            accelerate(model, PLAN).install()
    assert snapshot(model) == before


def test_a_generate_of_ones_own_comes_back(mini):
    model = mini.model()
    model.generate = own = type(model).generate.__get__(model)
    try:
        outer, inner = accelerate(model, PLAN).install(), accelerate(model, PLAN).install()
        assert model.generate is not own
        outer.remove()
        assert model.generate is not own
        inner.remove()
        assert model.generate is own
    finally:
        del model.generate


@pytest.mark.parametrize("change", ["wrap", "delete"])
def test_a_generate_that_somebody_changed_meanwhile_is_theirs(mini, change):
    model = mini.model()
    handle = accelerate(model, PLAN).install()
    if change == "wrap":
        model.generate = theirs = functools.partial(model.generate)
    else:
        del model.generate
    handle.remove()
    try:
        assert change == "delete" or model.generate is theirs
        assert "init_continuous_batching" not in vars(model)
    finally:
        vars(model).pop("generate", None)


def test_an_interrupt_leaves_nothing_either(mini):
    """Ctrl-C is no Exception, and hooks that always run do not run then."""
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), accelerate(model, PLAN) as run:
        handle = model.model.language_model.layers[3].register_forward_pre_hook(interrupt)
        try:
            model(**inputs)
        finally:
            handle.remove()
    assert run.forward is None
    with accelerate(model, PLAN):
        model(**inputs)


@pytest.mark.parametrize("turns", [1, 2])
@torch.no_grad()
def test_another_thread_may_install_and_remove_in_the_middle_of_a_forward(mini, turns):
    """A forward stays with the run under which it began, and that run's removal waits for it."""
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    other = accelerate(model, PLANS[1])

    def talk(between):
        cache = None
        for turn in range(turns):
            handle = model.model.language_model.layers[3].register_forward_pre_hook(
                between if turn == turns - 1 else lambda *_: None
            )
            full = torch.ones(1, (turn + 1) * inputs["input_ids"].shape[1], dtype=torch.long)
            places = torch.arange(full.shape[1])[None, -inputs["input_ids"].shape[1] :]
            out = model(**{**inputs, "attention_mask": full, "position_ids": places}, past_key_values=cache)
            cache = out.past_key_values
            handle.remove()
        return out.logits

    with accelerate(model, PLAN) as run:
        wanted = talk(lambda *_: None)
        assert torch.equal(talk(lambda *_: in_thread(other.install)), wanted)
        other.remove()
        removal = Thread(target=run.remove)

        def begin_removal(*_):
            removal.start()
            removal.join(0.05)  # it waits for this very forward

        assert torch.equal(talk(begin_removal), wanted)
        removal.join()
    assert not model.model._forward_pre_hooks


def test_a_run_leaves_a_model_that_is_never_idle():
    """Only forwards that began under the run are waited for, or a busy server could not remove it."""
    mini, stop = MINIATURES["llava"], Event()
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    inside = Barrier(2)

    def always_in_a_forward():
        while not stop.is_set():
            model(**inputs)

    def never_without_one(*_):
        if not stop.is_set():  # the next forward begins before this one ends
            inside.wait(60)

    before, run = snapshot(model), accelerate(model, PLAN).install()
    handle = model.model.language_model.layers[0].register_forward_pre_hook(never_without_one)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(always_in_a_forward)
        try:
            run.remove(timeout_s=60)
        finally:
            stop.set()
            inside.abort()
    handle.remove()
    assert snapshot(model) == before


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_a_thread_that_was_interrupted_can_be_given_up(interruption):
    mini = MINIATURES["llava"]
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])

    def interrupt(*_):
        raise interruption

    def work():
        handle = model.model.language_model.layers[3].register_forward_pre_hook(interrupt)
        try:
            model(**inputs)
        except interruption:
            handle.remove()

    before, run = snapshot(model), accelerate(model, PLAN).install()
    with ThreadPoolExecutor(1) as pool:  # its thread lives on
        pool.submit(work).result()
        refusal(lambda: run.remove(timeout_s=0.01), "under way for 0.01 s.*timeout_s=0")
        run.remove(timeout_s=0)
    assert snapshot(model) == before


def test_removing_in_the_middle_of_a_forward_is_refused_and_harmless():
    mini, sentences = MINIATURES["llava"], []
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])

    def remove_from_inside(*_):
        removal(5)
        in_thread(lambda: removal(0.01))  # another thread, which this forward waits for

    def removal(timeout_s):
        try:
            run.remove(timeout_s)
        except HalfVError as error:
            sentences.append(str(error))

    with torch.no_grad(), accelerate(model, PLAN) as run:
        wanted = model(**inputs).logits
        handle = model.model.language_model.layers[3].register_forward_pre_hook(remove_from_inside)
        assert torch.equal(model(**inputs).logits, wanted)
        handle.remove()
        assert torch.equal(model(**inputs).logits, wanted)
    assert "middle of a forward" in sentences[0]
    assert "under way for 0.01 s" in sentences[1]


def test_a_run_that_waits_to_be_removed_does_not_work_any_more():
    """The one below it does, and it cannot be installed meanwhile."""
    mini = MINIATURES["llava"]
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    alone, seen = expected(mini.name), []

    def while_a_forward_is_under_way(*_):
        if seen:
            return
        seen.append("begun")
        removal = Thread(target=top.remove)
        removal.start()
        while not top.closing:
            pass
        refusal(top.install, "being removed")
        in_thread(lambda: seen.append(model(**inputs).logits))
        seen.append(removal)

    with torch.inference_mode(), accelerate(model, PLANS[1]):
        top = accelerate(model, PLANS[2]).install()
        handle = model.model.language_model.layers[3].register_forward_pre_hook(while_a_forward_is_under_way)
        assert torch.equal(model(**inputs).logits, alone[2])
        handle.remove()
        seen[2].join()
        assert torch.equal(seen[1], alone[1])


def in_thread(action):
    thread = Thread(target=action)
    thread.start()
    thread.join()


def test_a_run_can_be_installed_again_but_not_twice(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    plain = model(**inputs).logits
    handle = accelerate(model, PLAN)
    for _ in range(2):
        handle.install()
        refusal(handle.install, "installed already")
        assert not torch.equal(model(**inputs).logits, plain)
        handle.remove()
        handle.remove()
        assert torch.equal(model(**inputs).logits, plain)


def test_the_outer_run_reports_nothing_of_the_inner(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN) as outer:
        model(**inputs)
        report = outer.last
        with accelerate(model, PLANS[2]) as inner:
            model(**inputs)
            assert outer.last is report
            assert len(inner.last.stages) == 1


def test_copies_and_pickles_of_an_accelerated_model_are_refused(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN):
        refusal(lambda: copy.deepcopy(model), "leave the accelerate")
        refusal(lambda: torch.save(model, io.BytesIO()), "leave the accelerate")
        state = model.state_dict()  # weights are free to go
    assert state.keys() == model.state_dict().keys()
    assert torch.equal(copy.deepcopy(model)(**inputs).logits, model(**inputs).logits)


def test_a_thousand_calls_leave_nothing_behind():
    """Tensors, their bytes, hooks and HalfV's own objects are as many after 1,000 calls as after 20."""
    mini = MINIATURES["llava"]
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])

    def living():
        gc.collect()
        things = gc.get_objects()
        tensors = [thing.nbytes for thing in things if issubclass(type(thing), torch.Tensor)]
        ours = sum(str(getattr(type(thing), "__module__", "")).startswith("halfv_accel") for thing in things)
        return len(tensors), sum(tensors), ours

    before = snapshot(model)
    with torch.no_grad(), accelerate(model, PLANS[1]):
        for call in range(1000):
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
            if call == 20:
                early, installed = living(), snapshot(model)
        assert living() == early
        assert snapshot(model) == installed
    assert snapshot(model) == before
