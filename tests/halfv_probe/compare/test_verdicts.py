"""Tables by slow loops, verdicts where the truth is known, and laws."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_probe.compare.verdicts import (
    BEST,
    BETTER,
    LIKE,
    LIKE_BEST,
    LOSS,
    NO_LOSS,
    WORSE,
    judge,
)

from .made_up import TASKS, made_up, rows_of

FAST = dict(draws=200)


def of(table, entrant):
    return table[table["entrant"] == entrant].iloc[0]


def slow_score(results, names, task=None):
    """Mean over samples of the mean over seeds, by loops."""
    by_sample = {}
    for _, row in results.iterrows():
        if row["entrant"] in names and task in (None, row["task"]):
            by_sample.setdefault(row["sample"], []).append(float(row["right"]))
    return sum(sum(scores) / len(scores) for scores in by_sample.values()) / len(by_sample)


def test_scores_by_slow_loops():
    results = made_up(31, seed=4)
    verdicts = judge(results, **FAST)
    seeds = [f"random_choice@0.5#{seed}" for seed in range(3)]
    groups = {"untouched": ["untouched"], "random_choice@0.5": seeds, "fastv@0.25": ["fastv@0.25"]}
    for name, members in groups.items():
        row = of(verdicts.overall, name)
        assert row["score"] == pytest.approx(slow_score(results, members))
        assert row["seeds"] == len(members) and row["samples"] == 31
        assert row["relative_percent"] == pytest.approx(
            100 * slow_score(results, members) / slow_score(results, ["untouched"])
        )
        for task in TASKS:
            found = of(verdicts.tasks[verdicts.tasks["task"] == task], name)
            assert found["score"] == pytest.approx(slow_score(results, members, task))
    random = slow_score(results, seeds)
    assert of(verdicts.overall, "divprune@0.5")["to_random"] == pytest.approx(
        slow_score(results, ["divprune@0.5"]) - random
    )
    cost = results[results["entrant"].isin(seeds)]
    assert of(verdicts.overall, "random_choice@0.5")["kl_nats"] == pytest.approx(cost["kl"].mean())
    assert of(verdicts.overall, "random_choice@0.5")["flops_share"] == pytest.approx(cost["flops"].mean())


def test_the_best_and_its_distance_by_hand():
    results = made_up(200, skill=dict(divprune=0.3, fastv=-0.3))
    overall = judge(results, **FAST).overall
    own = overall[overall["budget"] == 0.25]
    best = own.sort_values("score").iloc[-1]
    assert best["entrant"] == "divprune@0.25" and best["against_best"] == BEST
    assert best["to_best"] == best["to_best_low"] == best["to_best_high"] == 0
    for _, row in own.iterrows():
        assert row["to_best"] == pytest.approx(row["score"] - best["score"])
        assert row["to_best_low"] <= row["to_best"] <= row["to_best_high"]
        assert (row["against_best"] in (BEST, LIKE_BEST)) == (row["to_best_high"] >= 0)


def test_a_better_and_a_worse_method_are_called_so_and_equals_are_not():
    results = made_up(400, methods=("good", "bad", *(f"m{n}" for n in range(20))), skill=dict(good=0.2, bad=-0.25))
    overall = judge(results, draws=1000).overall
    for budget in (0.5, 0.25):
        assert of(overall, f"good@{budget}")["against_random"] == BETTER
        assert of(overall, f"bad@{budget}")["against_random"] == WORSE
        assert of(overall, f"bad@{budget}")["against_untouched"] == LOSS
        assert {of(overall, f"m{n}@{budget}")["against_random"] for n in range(20)} == {LIKE}
    assert of(overall, "good@0.5")["against_untouched"] == NO_LOSS


def test_whole_comparisons_of_random_entrants_call_nobody_different():
    """Through all of `judge`: at most 5 % of families, so of 40 with exactly 5 % more than 6 once in 100."""
    wrong = 0
    for seed in range(20):
        overall = judge(made_up(120, methods=tuple("abcdefgh"), seed=seed), draws=400).overall
        for budget in (0.5, 0.25):
            said = overall.loc[overall["budget"] == budget, "against_random"]
            wrong += said.isin([BETTER, WORSE]).any()
    assert wrong <= 6


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 999))
def test_new_numbers_and_another_order_of_samples_change_nothing(seed):
    results = made_up(24, seed=seed)
    draw = np.random.default_rng(seed)
    numbers = draw.permutation(1000)[:24]
    moved = results.assign(sample=numbers[results["sample"]]).sample(frac=1, random_state=seed)
    order = {name: place for place, name in enumerate(results["entrant"].unique())}
    moved = moved.sort_values("entrant", key=lambda names: names.map(order), kind="stable")
    one, other = judge(results, **FAST), judge(moved, **FAST)
    for name in ("overall", "tasks", "hard", "yes_no"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), rtol=1e-9)


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 999))
def test_an_entrant_and_its_double_tie(seed):
    results = made_up(40, seed=seed, skill=dict(fastv=0.2))
    double = results[results["method"] == "fastv"].assign(method="double")
    double["entrant"] = double["entrant"].str.replace("fastv", "double")
    verdicts = judge(pd.concat([results, double], ignore_index=True), **FAST)
    for table in (verdicts.overall, verdicts.tasks):
        one, other = (table[table["method"] == name].reset_index(drop=True) for name in ("fastv", "double"))
        columns = [name for name in table if name not in ("entrant", "method", "plan")]
        pd.testing.assert_frame_equal(one[columns], other[columns], rtol=1e-9, atol=1e-12)


def test_labels_of_some_samples_count_those_alone():
    results = made_up(40)
    odd = results["sample"] % 2 == 1
    results = results.astype({"right": "boolean"})
    results.loc[odd, "right"] = pd.NA
    results.loc[odd, "answer"] = None
    verdicts = judge(results, **FAST)
    assert (verdicts.measure, verdicts.samples, verdicts.unlabelled) == ("accuracy", 20, 20)
    alone = judge(results[~odd], **FAST)
    pd.testing.assert_frame_equal(verdicts.overall, alone.overall)


def test_without_labels_replies_that_stay_are_counted_and_a_change_is_no_loss():
    verdicts = judge(made_up(60, labelled=False), **FAST)
    assert verdicts.measure == "agreement" and verdicts.unlabelled == 0
    row = of(verdicts.overall, "fastv@0.25")
    assert row["score"] == row["agreement"] and row["kl_nats"] > 0
    assert verdicts.overall["against_untouched"].isna().all() and verdicts.hard.empty and verdicts.yes_no.empty
    never_right = made_up(60).assign(right=False)
    assert judge(never_right, **FAST).measure == "agreement"


def test_the_filter_keeps_what_the_downsampled_entrant_of_the_same_budget_misses():
    results = made_up(150)
    verdicts = judge(results, **FAST)
    for budget in (0.5, 0.25):
        shrunk = results[results["entrant"] == f"downsample@{budget}"]
        missed = set(shrunk.loc[~shrunk["right"], "sample"])
        own = verdicts.hard[verdicts.hard["filter_budget"] == budget]
        assert set(own["samples"]) == {len(missed)} and "downsample" not in set(own["method"])
        fastv = results[(results["entrant"] == f"fastv@{budget}") & results["sample"].isin(missed)]
        assert of(own, f"fastv@{budget}")["score"] == pytest.approx(fastv["right"].mean())
        assert set(own["method"]) == {"untouched", "random_choice", "fastv", "divprune"}
    assert judge(made_up(60), **FAST).hard.empty  # too few are missed


def test_without_baselines_there_is_nothing_to_compare_with():
    results = made_up(40)
    alone = judge(results[results["method"] == "fastv"], **FAST)
    assert alone.overall[["to_random", "to_untouched", "relative_percent"]].isna().all(axis=None)
    assert alone.overall["against_best"].isna().all()  # one alone is no best
    plans = pd.concat([results, rows_of("plan a", "plan", None, np.arange(40) % 2)], ignore_index=True)
    row = of(judge(plans, **FAST).overall, "plan a")
    assert pd.isna(row["to_random"]) and row["against_untouched"] == LOSS


def test_an_entrant_that_lacks_samples_is_left_out_with_the_reason():
    results = made_up(20)
    short = results.drop(results[(results["entrant"] == "fastv@0.5") & (results["sample"] > 4)].index)
    verdicts = judge(short, **FAST)
    assert verdicts.left_out == [("fastv@0.5", "has results on 5 of 20 samples only")]
    rest = judge(results[results["entrant"] != "fastv@0.5"], **FAST)
    pd.testing.assert_frame_equal(verdicts.overall, rest.overall)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_a_handful_of_samples_shows_nothing(samples):
    results = made_up(samples, skill=dict(fastv=-1))
    verdicts = judge(results, **FAST)
    assert set(verdicts.overall["against_random"].dropna()) == {LIKE}
    assert set(verdicts.overall["against_untouched"].dropna()) == {NO_LOSS}


def test_results_that_are_none():
    with pytest.raises(ValueError, match="lack the columns kl"):
        judge(made_up(3).drop(columns="kl"))
    with pytest.raises(ValueError, match="hold untouched twice for sample 0"):
        judge(pd.concat([made_up(3)] * 2))
    with pytest.raises(ValueError, match="no entrant has a result"):
        judge(made_up(3).iloc[:0])
    with pytest.raises(ValueError, match="no sample has one"):
        judge(made_up(3, labelled=False), measure="accuracy")
