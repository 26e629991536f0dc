"""A plan in words says the same as the plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import HalfVError, Plan, Stage, halfv_plan
from halfv_accel.bench import describe_plan, parse_plan
from halfv_accel.strategies import STRATEGIES, AnchorCover, KeepNone, LastTokenAttention

ratios = st.integers(1, 100).map(lambda percent: percent / 100)
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
    stages = [Stage(f"s{layer}", layer, draw(choosing), draw(ratios)) for layer in layers]
    if draw(st.booleans()):
        stages[-1] = Stage("end", layers[-1], KeepNone(), 0.0, draw(st.sampled_from(["drop", "freeze"])))
    return Plan(tuple(stages))


def meaning(plan):
    """All but the names of stages."""
    return [(stage.layer, stage.strategy, stage.retention, stage.then) for stage in plan.stages]


@given(plans())
def test_a_plan_survives_being_written_and_read(plan):
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
