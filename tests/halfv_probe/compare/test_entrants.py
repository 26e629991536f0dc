"""Who competes, under which name, and what is said of those who do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import HalfVError, Plan, Stage
from halfv_accel.names import architecture
from halfv_accel.published import METHODS
from halfv_accel.strategies import KeepNone
from halfv_probe.compare.budgets import Typical
from halfv_probe.compare.entrants import RETENTIONS, SEEDS, UNTOUCHED, Entrant, all_entrants

QWEN = Typical(architecture("qwen2.5-vl-7b"), visual=360, text=30, shrinks=True)
LLAVA = Typical(architecture("llava-1.5-7b"), visual=576, text=30)


def names(entrants):
    return [each.name for each in entrants]


@given(
    methods=st.lists(st.sampled_from([*METHODS]), max_size=6),
    shares=st.lists(st.sampled_from([0.9, 0.5, 0.25, 0.111, 1.0]), min_size=1, max_size=4),
    match=st.sampled_from(["tokens", "flops"]),
    baselines=st.booleans(),
    typical=st.sampled_from([QWEN, LLAVA]),
)
def test_everybody_enters_once_or_is_refused_with_a_reason(methods, shares, match, baselines, typical):
    entrants, refused = all_entrants(typical, methods, shares, match, baselines=baselines)
    assert entrants[0] == UNTOUCHED
    assert len({*names(entrants)}) == len(entrants)
    assert not {*names(entrants)} & {name for name, _ in refused}
    present = {each.method for each in entrants} | {name.partition("@")[0] for name, _ in refused}
    assert present == {"untouched", *methods, *(["random_choice", "downsample", "vtw"] if baselines else [])}
    assert all(reason and not reason.endswith(".") for _, reason in refused)
    for each in entrants:
        assert each.plan is None or all(stage.least is None for stage in each.plan.stages)
        assert (each.budget is None) == (each.method in ("untouched", "vtw"))


def test_baselines():
    entrants, refused = all_entrants(QWEN, [])
    assert names(entrants) == [
        "untouched",
        *(f"random_choice@{share}#{seed}" for share in RETENTIONS for seed in SEEDS),
        *(f"downsample@{share}" for share in RETENTIONS),
        "vtw",
    ]
    assert refused == []
    (vtw,) = [each for each in entrants if each.method == "vtw"]
    assert [(s.layer, isinstance(s.strategy, KeepNone)) for s in vtw.plan.stages] == [(14, True)]
    draws = [each.plan.stages[0] for each in entrants if each.budget == 0.111 and each.seed is not None]
    assert [draw.strategy.seed for draw in draws] == [0, 1, 2] and {draw.most(360) for draw in draws} == {40}


def test_pictures_that_cannot_shrink_are_said_once():
    entrants, refused = all_entrants(LLAVA, ["downsample"])
    assert not [each for each in entrants if each.method == "downsample"]
    assert [name for name, _ in refused] == ["downsample"]


def test_without_baselines_only_what_was_asked_for():
    assert names(all_entrants(QWEN, ["divprune"], [0.25], baselines=False)[0]) == ["untouched", "divprune@0.25"]
    assert names(all_entrants(QWEN, ["vtw", "vtw"], baselines=False)[0]) == ["untouched", "vtw"]


def test_reasons():
    _, refused = all_entrants(QWEN, ["fastv", "shortv"], [0.05])
    reasons = dict(refused)
    assert reasons["fastv@0.05"] == "FastV cannot go below 0.07 on average here, as it acts at layer 2"
    assert "halfv calibrate --method shortv" in reasons["shortv"]
    _, refused = all_entrants(LLAVA, ["halfv"], [0.75])
    assert refused[-1] == (
        "halfv@0.75",
        "HalfV cannot go above 0.47 on average here, as it freezes all visual tokens at layer 15",
    )
    _, refused = all_entrants(QWEN, ["fastv"], [0.05], "flops")
    assert "of the prefill FLOPs here, as it acts at layer 2 and its choice of tokens is counted" in refused[-1][1]


def test_given_plans_enter_as_they_are():
    plan = Plan((Stage("prumerge", 0, "prumerge", 0.5, least=0.05),))
    given = [
        Entrant("plan", "vtw", None, plan),
        Entrant("plan", "vtw", None, plan),
        Entrant("profile", "vtw", None, plan),
    ]
    entrants, _ = all_entrants(QWEN, ["vtw"], given=given)
    assert names(entrants)[-3:] == ["vtw", "plan vtw", "profile vtw"]
    assert entrants[-1].plan is plan


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_shares_that_make_no_sense(share):
    with pytest.raises(HalfVError, match="a retention of"):
        all_entrants(QWEN, ["fastv"], [0.5, share])


def test_a_name_that_is_misspelt():
    with pytest.raises(HalfVError, match="no method 'fastvv': did you mean fastv"):
        all_entrants(QWEN, ["fastvv"])
