"""The benchmark measures what it says. Clocks are made up: a tick for each time that somebody looks at one."""

import json
import random
import statistics
from contextlib import ExitStack
from dataclasses import replace
from itertools import count, pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import HalfVError, accelerate, paper_flops, prefill_flops
from halfv_accel.architectures import middling
from halfv_accel.bench import build_prompt, compare, find_break_even, parse_plan, provenance
from halfv_accel.bench import measure as measuring
from halfv_accel.bench.break_even import BreakEven, grid, size_of
from halfv_accel.bench.measure import Meter, cache_bytes, interleave, variants
from halfv_accel.bench.random_weights import assemble
from halfv_accel.bench.results import UNTOUCHED, Flops, Quantity, Ratio, Reading, Variant, variant
from halfv_accel.engine.run import Run
from halfv_accel.flops import selection_flops

from .miniatures import MINIATURES

PLAN = parse_plan("ivr:2:0.5:0.2,freeze:4")
NAMES = ["untouched", "accelerated", "with block", "keep all", "FastV-style", "random"]
FAMILIES = [name for name in MINIATURES if name != "video-llava"]


@pytest.fixture
def llava():
    return MINIATURES["llava"].model()


@pytest.fixture
def ticks(monkeypatch):
    """A clock that is one further on every look; returns the counter."""
    ticking = count()

    class Clock:
        def __init__(self, device):
            self.begin = self.end = next(ticking)

        def stop(self):
            self.end = next(ticking)
            return self

        @property
        def milliseconds(self):
            return float(self.end - self.begin)

    monkeypatch.setattr(measuring, "Stopwatch", Clock)
    return ticking


def reading(prefill=1.0, ttft=2.0, decode=1.0, **others):
    return Reading(
        **{
            **dict(vision_ms=1.0, prefill_ms=prefill, ttft_ms=ttft, decode_ms=decode, tokens_per_s=1.0),
            **dict(peak_mib=None, cache_bytes=1, selection_ms=0.5),
            **others,
        }
    )


def hooks(model):
    """Every hook of a model but those that transformers puts on at first use."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    found = [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind).values()]
    return [hook for hook in found if not hook.__module__.startswith("transformers.")]


# One run


def test_clocks_are_looked_at_in_the_order_of_events(llava, ticks):
    found = measuring.measure(llava, build_prompt(llava, 25, 8), None, 3)
    # 0 call, 1 call, 2-3 tower, 4-5 projector, 6-7 decoder, 8|9 token, 10|11 token, 12|13 token, 14 return
    assert found.vision_ms == 2
    assert found.prefill_ms == 1
    assert found.ttft_ms == 8
    assert found.decode_ms == 1
    assert found.tokens_per_s == pytest.approx(3 / 13e-3)
    two = measuring.measure(llava, build_prompt(llava, 25, 8, batch=2), None, 3)
    assert two.tokens_per_s == pytest.approx(2 * 3 / 13e-3)


def test_what_halfv_does_before_the_decoder_is_part_of_the_prefill(llava, ticks, monkeypatch):
    begin = Run._begin
    monkeypatch.setattr(Run, "_begin", lambda run, *rest: (next(ticks), begin(run, *rest))[1])
    prompt = build_prompt(llava, 25, 8)
    assert measuring.measure(llava, prompt, accelerate(llava, PLAN), 2).prefill_ms == 2
    assert measuring.measure(llava, prompt, None, 2).prefill_ms == 1


def test_a_with_block_is_timed_with_what_it_does_around_generate(llava, ticks, monkeypatch):
    """The run is made, installed, and removed on the clock; nothing of it is when the run was there before."""
    for name, ticks_of in (("accelerate", 100), ("remove", 10)):
        owner = measuring if name == "accelerate" else Run
        original = getattr(owner, name)

        def slow(*args, _original=original, _ticks=ticks_of, **kwargs):
            for _ in range(_ticks):
                next(ticks)
            return _original(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)
    prompt = build_prompt(llava, 25, 8)
    before, after = 100 + 1, 10 + 1
    run = measuring.prepared(llava, PLAN)
    installed, block = measuring.measure(llava, prompt, run, 3), measuring.measure(llava, prompt, PLAN, 3)
    assert (installed.install_ms, block.install_ms) == (0, before + after)
    assert block.prefill_ms == installed.prefill_ms + before + after
    assert block.ttft_ms == installed.ttft_ms + before
    assert 3e3 / block.tokens_per_s == pytest.approx(3e3 / installed.tokens_per_s + before + after)
    assert block.selection_ms > 0
    assert not [hook for hook in hooks(llava) if "halfv" in hook.__module__]


def test_an_encoder_inside_the_forward_is_not_part_of_the_prefill(llava, ticks):
    """Where pixels come into the forward itself, as they do without `generate`."""
    with ExitStack() as stack, torch.no_grad():
        meter = Meter(measuring.family_of(llava), stack)
        llava(**build_prompt(llava, 25, 8).inputs)
    # 0 forward, 1-2 tower, 3 anew, 4-5 projector, 6 anew, 7 end
    assert [clock.milliseconds for clock in meter.vision] == [1, 1]
    assert (meter.prefill.begin, meter.prefill.end) == (6, 7)


def test_one_token_leaves_nothing_to_decode(llava, ticks):
    assert measuring.measure(llava, build_prompt(llava, 25, 8), None, 1).decode_ms is None


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("plan", [None, PLAN], ids=["untouched", "accelerated"])
def test_a_run_generates_what_it_was_asked_for_and_leaves_no_hook(name, plan, monkeypatch):
    model, produced = MINIATURES[name].model(), []
    prompt = build_prompt(model, 40, 9, batch=2, ragged=True)
    generate = type(model).generate

    def watched(self, *args, **kwargs):
        produced.append(generate(self, *args, **kwargs))
        return produced[-1]

    before = len(hooks(model))
    monkeypatch.setattr(type(model), "generate", watched)
    found = measuring.measure(model, prompt, measuring.prepared(model, plan), 5)
    assert produced[0].sequences.shape == (2, prompt.inputs["input_ids"].shape[1] + 5)
    assert found.peak_mib is None  # no GPU, no such number
    assert (found.selection_ms > 0) == (plan is not None)
    assert len(hooks(model)) == before


def test_no_end_token_cuts_a_run_short(llava, monkeypatch):
    monkeypatch.setattr(llava.generation_config, "eos_token_id", list(range(5, 60)))
    prompt = build_prompt(llava, 25, 8)
    tokens = []
    monkeypatch.setattr(Meter, "start", lambda self, start=Meter.start: (tokens.append(1), start(self))[1])
    measuring.measure(llava, prompt, None, 6)
    assert len(tokens) == 7


@pytest.mark.parametrize("part", ["vision_tower", "language_model"])
def test_hooks_are_gone_after_an_exception(llava, part):
    def fail(*_):
        raise RuntimeError("burnt out")

    before = len(hooks(llava))
    prompt = build_prompt(llava, 25, 8)
    handle = getattr(llava.model, part).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="burnt out"):
        measuring.measure(llava, prompt, accelerate(llava, PLAN), 2)
    handle.remove()
    assert len(hooks(llava)) == before
    assert "generate" not in vars(llava)


def test_half_installed_hooks_unwind(llava, monkeypatch):
    before = len(hooks(llava))
    monkeypatch.setattr(type(llava.model), "register_forward_hook", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), ExitStack() as stack:
        Meter(measuring.family_of(llava), stack)
    assert len(hooks(llava)) == before


@pytest.mark.parametrize(
    "text", [None, "ivr:2:0.5", "ivr:2:0.5,freeze:4", "skip:2+4", "visionzip:0:9,skip:1", "keep_none:3"]
)
def test_cache_bytes_equal_a_slow_count(llava, text):
    plan, new = None if text is None else parse_plan(text), 3
    prompt = build_prompt(llava, 50, 8)
    values = 0
    for layer in range(6):
        kept = 50
        for stage in () if plan is None else plan.stages:
            if stage.layer <= layer and stage.then == "drop":
                kept = stage.tokens or int(50 * stage.retention)
        values += 2 * 4 * 8 * (8 + kept + new - 1)  # keys and values, heads, width of a head; the last token has none
    assert measuring.measure(llava, prompt, measuring.prepared(llava, plan), new).cache_bytes == 4 * values  # float32


def test_shared_memory_counts_once():
    class Layer:
        def __init__(self):
            whole = torch.zeros(100)
            self.keys, self.values, self.note = whole[:10], whole[50:], "no tensor"

    class Cache:
        layers = (Layer(), Layer())

    assert cache_bytes(Cache) == 2 * 100 * 4


# Several ways in turn


@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 3))
def test_each_runs_once_a_round_and_the_warm_up_is_forgotten(variety, rounds, warm_up):
    calls = []
    runs = {name: lambda name=name: calls.append(name) or len(calls) for name in range(variety)}
    told = []
    results = interleave(runs, rounds, warm_up, progress=lambda *step: told.append(step))
    turns = [calls[start : start + variety] for start in range(0, len(calls), variety)]
    assert [sorted(turn) for turn in turns] == [list(range(variety))] * (warm_up + rounds)
    for name, kept in results.items():
        assert kept == [1 + place for place, call in enumerate(calls) if call == name][warm_up:]
    assert told == [(turn + 1, warm_up + rounds) for turn in range(warm_up + rounds)]


def test_the_order_is_drawn_by_the_seed_and_any_may_follow_any():
    def order(seed):
        calls = []
        interleave({name: lambda name=name: calls.append(name) for name in range(4)}, 40, seed=seed)
        return calls

    assert order(1) == order(1) != order(2)
    assert {(a, b) for a, b in pairwise(order(1)) if a != b} == set(permutations(range(4), 2))


def test_a_comparison_follows_from_its_readings(llava, monkeypatch):
    draw, calls, given_times = random.Random(0), [], {name: [] for name in NAMES}

    def fake(model, prompt, run, new_tokens):
        own = run.plan if isinstance(run, Run) else run
        name = "with block" if run is PLAN else next(name for name, plan in variants(PLAN).items() if plan == own)
        calls.append(name)
        given_times[name].append(reading(*(draw.uniform(1, 9) for _ in range(3)), selection_ms=draw.random()))
        return given_times[name][-1]

    monkeypatch.setattr(measuring, "measure", fake)
    prompt = build_prompt(llava, 50, 9, batch=3, ragged=True)
    found = compare(llava, PLAN, prompt, new_tokens=4, rounds=7)
    assert [sorted(calls[start : start + 6]) for start in range(0, 48, 6)] == [sorted(NAMES)] * 8
    assert (found.visual_tokens, found.text_tokens, found.rounds) == (prompt.visual, prompt.text, 7)
    kept = {name: times[1:] for name, times in given_times.items()}  # the first round warms up
    untouched, *others = found.variants
    assert [variant.name for variant in found.variants] == NAMES
    assert (
        untouched.efficiency is untouched.prefill_speedup is untouched.ttft_speedup is untouched.decode_speedup is None
    )
    for one in found.variants:
        assert one.readings == kept[one.name]
        for quantity, value in one.quantities.items():
            values = [getattr(each, quantity) for each in kept[one.name]]
            assert value == (None if quantity == "peak_mib" else Quantity(*middle(values)))
        assert one.quantities["selection_share"].median == pytest.approx(
            statistics.median(each.selection_ms / each.ttft_ms for each in kept[one.name])
        )
    for one in others:
        for ratio, quantity in (("prefill", "prefill_ms"), ("ttft", "ttft_ms"), ("decode", "decode_ms")):
            pairs = zip(kept[UNTOUCHED], kept[one.name], strict=True)
            expected = statistics.median(getattr(a, quantity) / getattr(b, quantity) for a, b in pairs)
            assert getattr(one, f"{ratio}_speedup").median == pytest.approx(expected)
        saved = untouched.flops.exact / one.flops.exact
        assert one.efficiency.median == pytest.approx(one.prefill_speedup.median / saved)
        assert one.efficiency.high == pytest.approx(one.prefill_speedup.high / saved)
        assert one.efficiency.conclusive == one.prefill_speedup.conclusive
    assert json.loads(json.dumps(found.as_dict()))["variants"][1]["plan"] == "ivr:2:0.5:0.2,freeze:4"


def middle(values):
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return pytest.approx(median), pytest.approx(high - low)


def test_flops_are_those_of_flops_py(llava):
    visual, text = [50, 25, 0], [9, 8, 7]
    rows = list(zip(visual, text, strict=True))
    found = Flops.of(llava.config, visual, text, PLAN)
    assert found.exact == sum(prefill_flops(llava.config, v, t, PLAN) for v, t in rows)
    assert found.paper == sum(paper_flops(llava.config, v, t, PLAN) for v, t in rows)
    assert found.selection == sum(selection_flops(llava.config, v, PLAN) for v in visual) > 0
    untouched = Flops.of(llava.config, visual, text, None)
    assert untouched.exact == sum(prefill_flops(llava.config, v, t) for v, t in rows) > found.exact
    assert untouched.selection == 0


def test_a_run_that_takes_time_as_it_takes_operations_is_efficient():
    flops = {UNTOUCHED: Flops(1000, 1, 0), "half": Flops(500, 1, 0)}
    readings = {UNTOUCHED: [reading(80.0)] * 6, "half": [reading(40.0)] * 6}
    efficient = variant("half", PLAN, flops, readings).efficiency
    assert efficient == Ratio(1.0, 1.0, 1.0, True)


def test_a_plan_that_keeps_everything_is_compared_with_nothing_else():
    assert list(variants(parse_plan("ivr:1:1,sparse:3:1"))) == NAMES[:3]


def test_variants_change_what_they_name_and_nothing_else():
    compared = variants(replace(PLAN, fidelity="reference", min_visual_tokens=7))
    assert list(compared) == NAMES
    for plan in list(compared.values())[1:]:
        assert (plan.fidelity, plan.min_visual_tokens) == ("reference", 7)
        assert [(stage.layer, stage.then) for stage in plan.stages] == [(2, "drop"), (4, "freeze")]
    assert [stage.retention for stage in compared["keep all"].stages] == [1.0, 1.0]
    for name in ("FastV-style", "random"):
        assert compared[name].stages[1] == PLAN.stages[1]
        assert compared[name].stages[0].retention == 0.5
        assert compared[name].stages[0].strategy != PLAN.stages[0].strategy
    assert list(variants(parse_plan("freeze:3"))) == NAMES[:4]  # nothing is chosen there
    assert list(variants(parse_plan("random_choice:2:0.5"))) == NAMES[:5]  # it is itself random
    before = [*NAMES[:4], "random"]  # attention of a layer before there is none
    assert list(variants(parse_plan("visionzip:0:64,freeze:3"))) == before
    assert list(variants(parse_plan("adavtp:0:0.1-0.5"))) == before
    assert list(variants(parse_plan("skip:2+3"))) == list(variants(parse_plan("keep_none:0"))) == NAMES[:4]


@pytest.mark.parametrize(
    "text", ["ivr:2:0.5,freeze:4", "ivr:2:0.5,freeze:2", "skip:2+4", "visionzip:0:9,skip:1", "keep_none:3"]
)
def test_keeping_all_changes_nothing(llava, text):
    inputs = build_prompt(llava, 50, 9, batch=2, ragged=True).inputs
    with torch.no_grad():
        untouched = llava(**inputs).logits
        keep_all = variants(parse_plan(text))["keep all"]
        assert keep_all.keeps_everything
        with accelerate(llava, keep_all):
            assert torch.equal(llava(**inputs).logits, untouched)


# Spread


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12), st.floats(0.1, 10))
def test_an_interval_holds_its_median_lies_in_the_range_and_scales(ratios, factor):
    found = Ratio.of(ratios)
    assert min(ratios) - 1e-9 <= found.low <= found.median + 1e-9
    assert found.median - 1e-9 <= found.high <= max(ratios) + 1e-9
    assert found.median == pytest.approx(statistics.median(ratios))
    scaled = Ratio.of([ratio * factor for ratio in ratios])
    for edge in ("median", "low", "high"):
        assert getattr(scaled, edge) == pytest.approx(getattr(found, edge) * factor)


def test_the_interval_is_that_of_a_slow_bootstrap():
    draw = random.Random(1)
    ratios = [draw.gauss(2, 0.3) for _ in range(20)]
    medians = sorted(statistics.median(draw.choices(ratios, k=20)) for _ in range(20_000))
    found = Ratio.of(ratios)
    assert found.low == pytest.approx(medians[500], abs=0.03)
    assert found.high == pytest.approx(medians[19_500], abs=0.03)


@pytest.mark.parametrize(
    ("ratios", "conclusive"),
    [
        ([2.0] * 6, True),
        ([2.0] * 5, False),  # even equal ratios are too few
        ([1.95, 2.05] * 20, True),
        ([1.0, 3.0] * 20, False),
        ([0.5, 1.0, 1.5, 2.0, 2.5, 3.0], False),
    ],
)
def test_what_cannot_be_concluded_says_so(ratios, conclusive):
    found = Ratio.of(ratios)
    assert found.conclusive is conclusive
    flops = {name: Flops(1, 1, 0) for name in (UNTOUCHED, "other")}
    readings = {UNTOUCHED: [reading(r, 1.0, None) for r in ratios], "other": [reading(1.0, 1.0, None) for _ in ratios]}
    summary = variant("other", PLAN, flops, readings)
    assert isinstance(summary, Variant) and summary.decode_speedup is None
    assert ("prefill" in summary.doubtful) is not conclusive
    assert ("TTFT" in summary.doubtful) is (len(ratios) < 6)


def test_a_quantity_that_one_run_lacks_is_left_out():
    assert Quantity.of([1.0, None]) is None
    assert Quantity.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Quantity(3.0, 2.0)


def test_figures_say_where_they_come_from(llava):
    found = provenance(llava, seed=3, model="mini")
    assert {"halfv", "torch", "transformers", "python"} == set(found["versions"])
    assert (found["device"], found["dtype"], found["attention"]) == ("cpu", "float32", "sdpa")
    assert (found["threads"], found["seed"], found["model"]) == (torch.get_num_threads(), 3, "mini")
    assert found["date"].endswith("+00:00")


# Break-even


@given(st.dictionaries(st.integers(1, 500), st.sampled_from([0.5, 1.0, 1.5]), min_size=1))
def test_break_even_is_the_least_size_from_which_all_are_faster(speedups):
    sizes = [size_of(visual, [speedup * 10] * 6, [10.0] * 6) for visual, speedup in speedups.items()]
    good = [v for v in speedups if all(speedup > 1 for other, speedup in speedups.items() if other >= v)]
    found = BreakEven.of(sizes)
    assert found.visual_tokens == min(good, default=None)
    assert [size.visual_tokens for size in found.sizes] == sorted(speedups)


@pytest.mark.parametrize(("cost", "expected"), [(100, 240), (0, 32), (10_000, None)])
def test_break_even_on_made_up_times(monkeypatch, cost, expected):
    """Untouched takes v ms, the plan a constant and v / 2."""
    model, asked = MINIATURES["qwen2.5-vl"].model(), []

    def fake(model, prompt, plan, new_tokens):
        asked.append((prompt.visual, plan and plan.plan, new_tokens))
        return reading(float(prompt.visual[0]) if plan is None else cost + prompt.visual[0] / 2)

    monkeypatch.setattr("halfv_accel.bench.break_even.measure", fake)
    plan = replace(PLAN, min_visual_tokens=99)  # an earlier answer must not hide the small sizes
    found = find_break_even(model, plan, 300, text_tokens=8, batch=2, rounds=6)
    assert found.visual_tokens == expected
    assert [size.visual_tokens for size in found.sizes] == grid(300)
    assert all(len(visual) == 2 and new == 1 for visual, _, new in asked)
    assert {plan for _, plan, _ in asked} == {None, PLAN}
    assert found.sizes[0].untouched_ms == Quantity(32.0, 0.0)


def test_sizes_that_a_model_cannot_have_are_measured_once(monkeypatch):
    model, calls = assemble(middling(64, 5, 8)), []  # pictures of 64 tokens
    monkeypatch.setattr("halfv_accel.bench.break_even.measure", lambda *_: calls.append(1) or reading())
    found = find_break_even(model, PLAN, 100, rounds=1)
    assert [size.visual_tokens for size in found.sizes] == [64, 128]
    assert len(calls) == 2 * 2 * 2  # two sizes, two variants, a warm-up and a round


def test_a_break_even_that_could_be_chance_is_not_certain():
    sizes = [size_of(100, [1.0] * 6, [2.0] * 6), size_of(200, [2.0] * 6, [1.0] * 6)]
    assert BreakEven.of(sizes).visual_tokens == 200 and BreakEven.of(sizes).certain  # the size below has no say
    shaky = size_of(300, [1.2, 1.1, 1.1, 0.5, 0.4, 1.3], [1.0] * 6)
    assert BreakEven.of([*sizes, shaky]).visual_tokens == 200 and not BreakEven.of([*sizes, shaky]).certain
    assert not BreakEven.of(sizes[:1]).certain


@given(st.integers(1, 5000))
def test_the_grid_grows_evenly_to_the_largest(largest):
    sizes = grid(largest)
    assert sizes[-1] == largest and sizes[0] == min(32, largest)
    assert all(one < other <= 1.8 * one for one, other in pairwise(sizes))


def test_prompts_of_other_families_are_refused():
    with pytest.raises(HalfVError, match="VideoLlavaForConditionalGeneration"):
        build_prompt(MINIATURES["video-llava"].model(), 16, 8)
