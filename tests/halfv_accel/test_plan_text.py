"""A plan in words says the same as the plan."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import Downsample, HalfVError, Plan, Stage, halfv_plan
from halfv_accel.bench import describe_plan, parse_plan
from halfv_accel.methods import Facts
from halfv_accel.plan_document import PlanDocument
from halfv_accel.published import METHODS
from halfv_accel.strategies import STRATEGIES, Adaptive, AnchorCover, KeepNone, LastTokenAttention

from .refusing import refusal

ratios = (
    st.integers(1, 100).map(lambda percent: percent / 100)
    | st.floats(1e-4, 1)
    | st.builds(lambda a, b: min(a, b) / max(a, b), st.integers(1, 600), st.integers(1, 600))
)
scorers = st.sampled_from(["previous", "own"])
choosing = st.one_of(
    st.builds(AnchorCover, ratios, scorers),
    st.builds(LastTokenAttention, scored_by=scorers),
    st.sampled_from([STRATEGIES.resolve(n) for n in STRATEGIES if n != "keep_none"]),
)


@st.composite
def plans(draw):
    """Plans of one to four stages, the last one perhaps a freeze."""
    layers = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=4)))
    stages = [draw(stage_at(layer)) for layer in layers]
    if draw(st.booleans()):
        stages[-1] = Stage("end", layers[-1], KeepNone(), 0.0, draw(st.sampled_from(["drop", "freeze"])))
    shrink = draw(st.none() | st.builds(Downsample, ratios) | st.integers(2, 2000).map(lambda n: Downsample(tokens=n)))
    return Plan(tuple(stages), skip=tuple(draw(st.sets(st.integers(0, 40), max_size=4))), downsample=shrink)


@st.composite
def stage_at(draw, layer):
    """A stage with either kind of budget; one that may decide has bounds, now and then."""
    strategy = draw(choosing)
    if draw(st.booleans()):
        return Stage(f"s{layer}", layer, strategy, tokens=draw(st.integers(2, 2000)))
    most, least = draw(ratios), None
    if isinstance(strategy, Adaptive) and draw(st.booleans()):
        least = min(most, draw(ratios))
    return Stage(f"s{layer}", layer, strategy, most, least=least)


def meaning(plan):
    """All but the names of stages."""
    stages = [(s.layer, s.strategy, s.retention, s.tokens, s.least, s.then) for s in plan.stages]
    return stages, plan.skip, plan.downsample


@given(plans())
def test_a_plan_survives_being_written_and_read(plan):
    assert meaning(parse_plan(describe_plan(plan))) == meaning(plan)


@given(plans(), st.sampled_from(["paper", "reference"]), st.integers(0, 100))
def test_a_plan_survives_being_written_as_a_document(plan, fidelity, least):
    plan = replace(plan, fidelity=fidelity, min_visual_tokens=least)
    text = PlanDocument.of(plan).model_dump_json()
    assert PlanDocument.model_validate_json(text, strict=True).plan() == plan


SHALLOW = Facts(6)
WORDS = {
    "fastv:2:0.25": [("fastv", 2, 0.25, None)],
    "fastv": [("fastv", 2, 0.5, None)],
    "fastv:3": [("fastv", 3, 0.5, None)],
    "fastv::64": [("fastv", 2, 1.0, 64)],
    "visionzip::64": [("visionzip", 0, 1.0, 64)],
    "visionzip:0:1/3": [("visionzip", 0, 1 / 3, None)],
    "pdrop": [("fastv", 2, 0.5, None), ("fastv", 3, 0.25, None), ("fastv", 4, 0.125, None)],
    "vtw": [("keep_none", 3, 0.0, None)],
    "vtw:5": [("keep_none", 5, 0.0, None)],
    "divprune::9,freeze:4": [("divprune", 0, 1.0, 9), ("keep_none", 4, 0.0, None)],
}


@pytest.mark.parametrize("text", WORDS)
def test_words_of_published_methods(text):
    plan = parse_plan(text, SHALLOW)
    found = [(STRATEGIES.name_of(s.strategy), s.layer, s.retention, s.tokens) for s in plan.stages]
    assert found == WORDS[text]


def test_options_bounds_and_skipped_layers():
    plan = parse_plan("adavtp:0:0.1-0.5:tau_max=0.5,fastv:3:0.2:own,skip:4+7-9")
    first, second = plan.stages
    assert (first.least, first.retention, first.strategy.tau_max) == (0.1, 0.5, 0.5)
    assert second.strategy.scored_by == "own" and plan.skip == (4, 7, 8, 9)


@pytest.mark.parametrize("text", ["pdrop::0.25", "pdrop:8", "infoprune::64", "btp::0.1-0.5"])
def test_one_of_several_stages_is_not_guessed(text):
    refusal(lambda: parse_plan(text, Facts(32)), r"is one stage, and .* has [234]: write \w+ alone for all")


def test_one_single_token_does_not_read_as_all():
    words = describe_plan(Plan((Stage("a", 1, "random_choice", tokens=1),)))
    assert "one token" in words
    refusal(lambda: parse_plan(words), "'one token' where a number belongs")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("depth", [4, 6, 28, 32, 40])
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_every_method_has_a_plan_for_every_depth(name, depth, kind):
    """In order, within the model, and the same once it is written out."""
    if not METHODS[name].steps and METHODS[name].downsample is None:
        refusal(lambda: parse_plan(name, Facts(depth, kind)), "has to be measured.*skip:")
        return
    plan = parse_plan(name, Facts(depth, kind))
    plan.check_depth(depth)
    assert meaning(parse_plan(describe_plan(plan))) == meaning(plan)


def test_words_of_halfv_s_plans():
    read = parse_plan(" ivr:2:0.25:0.1, sparse:21:0.05")
    paper = dict(ivr_layer=2, ivr_retention=0.25, anchor_ratio=0.1)
    assert read == halfv_plan(**paper, ssr_mode="sparse", ssr_layer=21, ssr_retention=0.05)
    assert parse_plan("ivr:2:0.25,freeze:2") == halfv_plan(**paper, ssr_mode="freeze", ssr_layer=2)
    own = halfv_plan(
        **paper, ivr_scored_by="own", ssr_mode="sparse", ssr_layer=21, ssr_retention=0.05, ssr_scored_by="own"
    )
    assert parse_plan("ivr:2:0.25:own,sparse:21:0.05:own") == own
    assert parse_plan("last_token_attention:2:0.5").stages[0].strategy == LastTokenAttention()


def test_what_words_cannot_ask_for_is_still_described():
    stages = (Stage("a", 2, LastTokenAttention(rotary=False), 0.5), Stage("b", 3, AnchorCover(0.3), 0.25, "freeze"))
    words = describe_plan(Plan(stages, "reference", min_visual_tokens=64))
    for part in ("rotary=False", "2:0.5", "freeze but", "0.3", "3:0.25", "from 64 visual tokens", "reference"):
        assert part in words
    assert describe_plan(None) == "untouched"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "starts with ''"),
        ("melt:3:0.5", "starts with 'melt'"),
        ("ivr:2:0.5,", "starts with ''"),
        ("ivr", "has 0 numbers: write ivr:layer:retention:anchor_ratio"),
        ("ivr:2", "has 1 numbers"),
        ("ivr:2:0.5:0.1:7", "has 4 numbers"),
        ("sparse:2:0.5:0.1", "write sparse:layer:retention,"),
        ("freeze:9:0.5", "write freeze:layer,"),
        ("skip", "'' where a number belongs"),
        ("skip:3+x", "'x' where a number belongs"),
        ("skip:5-3", "from 5 to 3: write the lower one first"),
        ("fastv", "leaves layers or budgets to the model's size"),
        ("fastv:2:1/0", "'1/0' where a number belongs"),
        ("pdrop:8", "leaves layers or budgets"),
        ("fastv:2:0.5:x=1", "strategy 'fastv' has no parameter 'x': it has scored_by"),
        ("fastv:2:0.5:0.1", "has 3 numbers"),
        ("fastv:2:0.1-0.5", "keeps a fixed share"),
        ("ivr:two:0.5", "'two' where a number belongs"),
        ("ivr:2:nan", "'nan' where a number belongs"),
        ("ivr:inf:0.5", "'inf' where a number belongs"),
        ("ivr:2.5:0.5", "has layer 2.5"),
        ("ivr:0:0.5", "layer 0"),
        ("ivr:2:1.5", "retention 1.5"),
        ("ivr:2:0.5:1.5", "anchor_ratio is 1.5"),
        ("freeze:3,ivr:5:0.5", "make the freeze last"),
        ("ivr:5:0.5,sparse:3:0.1", "choose a layer of at least 6"),
    ],
)
def test_nonsense_is_named_with_the_way_out(text, fragment):
    with pytest.raises(HalfVError) as error:
        parse_plan(text)
    message = str(error.value)
    assert fragment in message and "\n" not in message and not message.endswith(".")
