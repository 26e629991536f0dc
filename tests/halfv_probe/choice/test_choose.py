"""Choices against brute force over every candidate, on made-up outcomes with many ties."""

from contextlib import suppress
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import HalfVError
from halfv_accel.evidence import Goal
from halfv_probe.choice.choose import (
    BRACKETS,
    CONTENDERS,
    choose,
    chooser,
    contenders,
    finalists,
    hopeful,
    pareto,
    worthwhile,
)
from halfv_probe.trials.candidates import Candidate
from halfv_probe.trials.outcomes import Trials

MODES = ("none", "sparse", "freeze")
SAMPLES = [1, 30, 100, 199, 200, 201, 400]


@st.composite
def outcomes(draw, most=60):
    """Few different costs and losses, so that ties are common."""
    seed, count, samples = draw(st.integers(0, 10_000)), draw(st.integers(1, most)), draw(st.sampled_from(SAMPLES))
    rng = np.random.default_rng(seed)
    flops = rng.choice(rng.uniform(0.1, 1.0, draw(st.integers(1, 20))), count)
    lost = rng.random((count, samples)) < rng.choice([0.0, 0.003, 0.006, 0.02, 0.2], (count, 1))
    same = ~lost & (rng.random((count, samples)) < 0.9)
    kl = rng.choice([0.0, 0.1, 0.2], (count, 1)) + np.zeros((1, samples))
    candidates = tuple(
        Candidate(1 + n, 0.5, 0.2, mode, None if mode == "none" else 500 + n % 7, 0.05 if mode == "sparse" else None)
        for n, mode in enumerate(rng.choice(MODES, count).tolist())
    )
    return Trials(candidates, flops, lost, same, kl)


def faith(trials, number):
    return int(trials.lost[number].sum()), float(trials.kl[number].mean())


def everyone(trials):
    return range(len(trials.candidates))


def shown(lost, samples, limit, confidence):
    """Would a loss of `limit` give so few lost answers only with the rest of the confidence? (Clopper-Pearson)"""
    if lost == samples:
        return limit >= 1
    tail = sum(comb(samples, k) * limit**k * (1 - limit) ** (samples - k) for k in range(lost + 1))
    return tail <= 1 - confidence


@given(trials=outcomes(), budget=st.floats(0.05, 1))
def test_a_budget_is_met_by_the_most_faithful_plan_within_it(trials, budget):
    within = [n for n in everyone(trials) if trials.flops[n] <= budget]
    goal = Goal(kind="target_flops", value=budget)
    if within:
        best = choose(trials, goal)
        assert best in within
        assert faith(trials, best) == min(faith(trials, n) for n in within)
    else:
        cheapest = f"the cheapest one tried needs {min(trials.flops):.1%}, so allow that"
        with pytest.raises(HalfVError, match=f"^no plan needs only {budget:.0%} of the prefill FLOPs: {cheapest}"):
            choose(trials, goal)


@given(trials=outcomes(), limit=st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.3]), confidence=st.sampled_from([0.8, 0.95]))
def test_a_promise_is_tested_in_order_up_to_the_first_plan_that_fails(trials, limit, confidence):
    samples = trials.lost.shape[1]
    passed = [shown(int(trials.lost[n].sum()), samples, limit, confidence) for n in everyone(trials)]
    goal = Goal(kind="max_drop", value=limit, confidence=confidence)
    if passed[0]:
        best = choose(trials, goal)
        assert all(passed[: best + 1])
        assert best + 1 == len(passed) or not passed[best + 1]
    else:
        with pytest.raises(
            HalfVError, match=r"^no plan is shown to lose at most .* --max-drop, or give more --samples$"
        ):
            choose(trials, goal)


@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_promises_are_broken_no_more_often_than_the_confidence_allows(confidence):
    """Plans whose true losses straddle the limit, chosen on one half and tested on the other."""
    rng, broken, runs = np.random.default_rng(0), 0, 400
    true = np.linspace(0.05, 0.001, 30)
    flops = np.linspace(0.2, 0.9, 30)
    goal = Goal(kind="max_drop", value=0.02, confidence=confidence)
    candidates = tuple(Candidate(1 + n, 0.5, 0.2) for n in range(30))
    for _ in range(runs):
        seen, behind = (rng.random((30, n)) < true[:, None] for n in (300, 800))
        first = Trials(candidates, flops, seen, ~seen, np.tile(true[:, None], 300))
        left = contenders(first, goal)
        numbers = [candidates.index(candidate) for candidate in left.candidates]
        last = Trials(left.candidates, left.flops, behind[numbers], ~behind[numbers], np.zeros((len(numbers), 800)))
        with suppress(HalfVError):
            broken += true[numbers[choose(last, goal)]] > 0.02
    assert broken / runs <= (1 - confidence) + 2 * (confidence * (1 - confidence) / runs) ** 0.5


@given(trials=outcomes())
def test_contenders_for_a_promise_go_from_the_most_faithful_to_the_cheapest(trials):
    left = contenders(trials, Goal(kind="max_drop", value=0.02))
    ranks = [faith(left, n) for n in everyone(left)]
    assert ranks == sorted(ranks)
    assert sorted(left.flops, reverse=True) == left.flops.tolist()
    assert ranks[0] == min(faith(trials, n) for n in everyone(trials))
    for n in everyone(trials):  # whoever is left out has one in front of it that is no dearer and no less faithful
        assert any(left.flops[m] <= trials.flops[n] and ranks[m] <= faith(trials, n) for m in everyone(left))


@given(trials=outcomes())
def test_contenders_for_a_budget_are_the_most_faithful(trials):
    left = contenders(trials, Goal(kind="target_flops", value=1.0))
    ranked = sorted(everyone(trials), key=lambda n: faith(trials, n))
    assert {faith(left, n) for n in everyone(left)} == {faith(trials, n) for n in ranked[:CONTENDERS]}


@given(trials=outcomes())
def test_the_papers_goal_takes_the_cheapest_within_half_a_point_of_the_most_careful(trials):
    """Of what differs from the cheapest in anchors and scorers only, the most faithful."""
    samples = trials.lost.shape[1]
    lost = [int(trials.lost[n].sum()) for n in everyone(trials)]
    good = [n for n in everyone(trials) if 200 * (lost[n] - min(lost)) <= samples]
    best = choose(trials, Goal())
    assert best in good
    least = min(trials.flops[n] for n in good)
    cheapest = [n for n in good if trials.flops[n] <= least + 1e-6]
    kinds = {trials.candidates[n].kind for n in cheapest}
    variants = [n for n in good if trials.candidates[n].kind == trials.candidates[best].kind]
    assert trials.candidates[best].kind in kinds
    assert faith(trials, best) == min(faith(trials, n) for n in variants)


@given(seed=st.integers(0, 9999), gain=st.sampled_from([0, 1, 3, 12]))
def test_a_variant_counts_only_where_it_is_surely_better_than_the_plain_plan(seed, gain):
    """The plain plan loses 20 of 100; a variant keeps some of these, another one always loses more."""
    rng = np.random.default_rng(seed)
    plain = Candidate(3, 0.5, 0.2, "freeze", 15)
    variants = (plain, replace(plain, anchor_ratio=0.5), replace(plain, ivr_scored_by="own"))
    lost = np.zeros((3, 100), dtype=bool)
    lost[:, rng.permutation(100)[:20]] = True
    lost[1, np.flatnonzero(lost[0])[:gain]] = False
    lost[2, np.flatnonzero(~lost[0])[:5]] = True
    trials = Trials(variants, np.full(3, 0.4), lost, ~lost, lost.astype(float))
    sure = gain >= 4  # 3 of 100, none the other way: 1.76 standard errors
    assert worthwhile(trials).tolist() == ([0, 1] if sure else [0])
    for goal in (Goal(), Goal(kind="target_flops", value=0.5)):
        assert choose(trials, goal) == int(sure)
    assert len(contenders(trials, Goal(kind="max_drop", value=0.5)).candidates) == 1


@given(trials=outcomes(), draw=st.data())
def test_finalists_hold_the_winner_within_a_budget(trials, draw):
    exactly = st.sampled_from(trials.flops.tolist())
    budget = draw.draw(st.one_of(st.floats(0.05, 1), exactly, exactly.map(lambda flops: flops - 1e-10)))  # rounding
    goal = Goal(kind="target_flops", value=budget)
    last = finalists(trials, goal)
    assert last.flops.max(initial=0) <= budget + 1e-8
    try:
        winner = choose(trials, goal)
    except HalfVError:
        assert not last.candidates and min(trials.flops) > budget + 2e-10
    else:
        assert faith(last, choose(last, goal)) == faith(trials, winner)


@given(trials=outcomes(most=400), limit=st.sampled_from([0.05, 0.1, 0.3]))
def test_finalists_hold_a_plan_as_safe_as_any_and_no_bracket_dearer(trials, limit):
    """So what is promised can still be promised, and costs at most 1/32 of the whole range more."""
    goal = Goal(kind="max_drop", value=limit)
    last, width = finalists(trials, goal), np.ptp(trials.flops) / BRACKETS
    for number in everyone(trials):
        near = [n for n in everyone(last) if abs(last.flops[n] - trials.flops[number]) <= width + 1e-9]
        assert min(faith(last, n) for n in near) <= faith(trials, number)


@given(trials=outcomes(most=400))
def test_finalists_are_some_of_the_candidates_with_their_outcomes(trials):
    last = finalists(trials, Goal(kind="max_drop", value=0.1))
    assert len(last.candidates) <= 2 * BRACKETS
    assert set(rows_of(last)) <= set(rows_of(trials))


def rows_of(trials):
    for number, candidate in enumerate(trials.candidates):
        arrays = (trials.lost, trials.same, trials.kl)
        yield candidate, trials.flops[number], *(array[number].tobytes() for array in arrays)


@given(trials=outcomes(), tolerance=st.sampled_from([0.0, 0.005, 0.1]))
def test_only_plans_that_are_surely_worse_are_given_up_after_a_look(trials, tolerance):
    left = hopeful(trials, tolerance)
    assert set(rows_of(left)) <= set(rows_of(trials))
    best = min(everyone(trials), key=lambda n: faith(trials, n))
    assert trials.candidates[best] in left.candidates
    for n in everyone(trials):
        more = trials.lost[n].mean() - trials.lost[best].mean()
        if more <= tolerance:
            assert trials.candidates[n] in left.candidates


def test_giving_up_is_rarely_wrong():
    """A plan as good as the most careful one survives a look at 32 samples nearly always."""
    rng, kept = np.random.default_rng(0), 0
    candidates = tuple(Candidate(1 + n, 0.5, 0.2) for n in range(12))
    for _ in range(300):
        lost = rng.random((12, 32)) < 0.05
        looked = Trials(candidates, np.linspace(0.2, 0.9, 12), lost, ~lost, lost.astype(float))
        kept += candidates[0] in hopeful(looked).candidates
    assert kept / 300 >= 0.9


@given(trials=outcomes(), seed=st.integers(0, 9), kind=st.sampled_from(["paper", "max_drop", "target_flops"]))
def test_a_resample_is_chosen_from_like_the_samples_themselves(trials, seed, kind):
    """A goal that the drawn samples put out of reach falls back on the most faithful plan."""
    goal = Goal(kind=kind, value=None if kind == "paper" else 0.3)
    drawn = np.random.default_rng(seed).integers(0, trials.lost.shape[1], trials.lost.shape[1])
    again = replace(
        trials,
        lost=np.array([[row[n] for n in drawn] for row in trials.lost]),
        same=np.array([[row[n] for n in drawn] for row in trials.same]),
        kl=np.array([[row[n] for n in drawn] for row in trials.kl]),
    )
    try:
        best = trials.candidates[choose(again, goal)]
        allowed = [best]
    except HalfVError:
        least = min(faith(again, n) for n in everyone(again))
        allowed = [trials.candidates[n] for n in everyone(again) if faith(again, n) == least]
    assert chooser(trials, goal)(drawn) in [(c.ivr_layer, c.ssr_layer, c.ssr_mode) for c in allowed]


@given(trials=outcomes(), draw=st.data())
def test_results_are_the_shares_of_the_samples(trials, draw):
    number = draw.draw(st.integers(0, len(trials.candidates) - 1))
    found = trials.results(number)
    assert found["drop"] == pytest.approx(sum(trials.lost[number].tolist()) / found["samples"])
    assert found["agreement"] == pytest.approx(sum(trials.same[number].tolist()) / found["samples"])
    assert (found["flops"], found["samples"]) == (trials.flops[number], trials.lost.shape[1])
    assert found["kl"] == pytest.approx(trials.kl[number].sum() / found["samples"])


@given(trials=outcomes(), cut=st.integers(0, 60))
def test_joined_trials_hold_each_candidate_once(trials, cut):
    number = np.arange(len(trials.candidates))
    joined = trials.where(number[:cut]).joined(trials.where(number[cut // 2 :]))
    assert set(joined.candidates) == set(trials.candidates)
    assert set(rows_of(joined)) <= set(rows_of(trials))


@given(points=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_the_front_holds_every_point_that_none_equals_or_beats_in_both(points):
    """Of equal points one; the cheapest first."""
    front = pareto(*zip(*points, strict=True)) if points else pareto([], [])
    best = {a for a in points if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in points)}
    assert [points[number] for number in front] == sorted(best)
