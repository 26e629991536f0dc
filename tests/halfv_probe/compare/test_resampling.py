"""Intervals equal their definition drawn in full, keep their level on null models, and see what is there."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_probe.compare.resampling import (
    differences,
    fewest_that_differ,
    interval,
    resampled_means,
    standard_error,
    studentised,
)


def all_draws(column):
    """Mean, and studentised deviation, of each of the n^n equally likely draws, by plain loops."""
    n, centre = len(column), sum(column) / len(column)
    least = sqrt(sum((value - centre) ** 2 for value in column) / (n - 1) / n) / 2
    for drawn in product(column, repeat=n):
        mean = sum(drawn) / n
        variance = sum((value - mean) ** 2 for value in drawn) / (n - 1) / n
        yield mean, (mean - centre) / max(sqrt(variance), least)


def test_means_of_draws_are_those_of_all_possible_draws():
    column = [0.0, 1.0, 1.0, 0.5]
    exact = sorted(mean for mean, _ in all_draws(column))
    drawn = np.sort(resampled_means(np.array(column)[:, None], seed=3, draws=256 * 100)[:, 0])
    for share in (0.05, 0.25, 0.5, 0.8, 0.95):
        assert np.mean(drawn <= exact[int(share * 256)] + 1e-9) == pytest.approx(
            np.mean(np.array(exact) <= exact[int(share * 256)] + 1e-9), abs=0.015
        )


def test_studentised_deviations_are_those_of_all_possible_draws():
    column = [0.0, 1.0, 1.0, 0.5]
    exact = np.array([deviation for _, deviation in all_draws(column)])
    drawn = studentised(np.array(column)[:, None], seed=3, draws=256 * 100)[:, 0]
    for value in (-3, -1, 0, 1, 3):
        assert np.mean(drawn <= value + 1e-9) == pytest.approx(np.mean(exact <= value + 1e-9), abs=0.015)
    assert [drawn.min(), drawn.max()] == pytest.approx([exact.min(), exact.max()])


def test_a_percentile_interval_is_that_of_all_possible_draws():
    column = [0.0, 1.0, 1.0, 0.0]
    exact = np.quantile([mean for mean, _ in all_draws(column)], [0.025, 0.975])
    assert [each[0] for each in interval(np.array(column)[:, None], draws=20_000)] == pytest.approx(exact)


def test_intervals_of_a_family_by_slow_loops():
    """The same draws, counted one at a time, and the two quantiles of what the docstring says."""
    draw = np.random.default_rng(1)
    block = draw.choice([-1.0, 0.0, 0.0, 1.0], size=(60, 3)) + [0.0, 0.1, 0.0]
    block = block[np.lexsort(block.T[::-1])]
    generator, lowest, highest = np.random.default_rng([5, 0]), [], []
    for places in generator.integers(0, 60, (400, 60)):
        deviations = []
        for column in block.T:
            drawn = [column[place] for place in places]
            mean = sum(drawn) / 60
            error = sqrt(sum((value - mean) ** 2 for value in drawn) / 59 / 60)
            deviations.append((mean - sum(column) / 60) / max(error, column.std(ddof=1) / sqrt(60) / 2))
        lowest.append(min(0, *deviations))
        highest.append(max(0, *deviations))
    ranked = sorted(max(-low, high) for low, high in zip(lowest, highest, strict=True))
    both, tail = ranked[int(np.ceil(0.95 * 399))], int(np.ceil(0.975 * 399))
    below = max(both, sorted(highest)[tail])
    above = max(both, sorted(-low for low in lowest)[tail])
    [found] = differences([block], seed=5, draws=400)
    error = standard_error(block)
    assert found.low == pytest.approx(block.mean(axis=0) - below * error)
    assert found.high == pytest.approx(block.mean(axis=0) + above * error)


def null_scores(draw, samples, chance, entrants, seeds=3):
    """Entrants that are random themselves beside the mean of so many seeds; hard samples are hard for all."""
    hardness = draw.beta(2 * chance, 2 * (1 - chance), size=(samples, 1))
    right = (draw.random((samples, entrants + seeds)) < hardness).astype(float)
    return right[:, :entrants] - right[:, entrants:].mean(axis=1, keepdims=True)


@pytest.mark.parametrize(("samples", "chance", "entrants"), [(60, 0.9, 25), (200, 0.8, 25), (100, 0.1, 10)])
def test_of_entrants_that_are_random_hardly_ever_any_is_called_different(samples, chance, entrants):
    """At most 5 % of comparisons; of 300 with exactly 5 %, 24 or more would be seen once in 50."""
    draw, wrong = np.random.default_rng(samples), 0
    for seed in range(300):
        [found] = differences([null_scores(draw, samples, chance, entrants)], seed, draws=500)
        wrong += bool(np.any((found.low > 0) | (found.high < 0)))
    assert wrong <= 23


def test_without_correction_most_comparisons_would_find_something():
    """So that the law above can fail at all: each of 25 entrants alone."""
    draw, wrong = np.random.default_rng(0), 0
    for seed in range(40):
        block = null_scores(draw, 200, 0.8, 25)
        alone = [differences([block[:, [column]]], seed, draws=300)[0] for column in range(25)]
        wrong += any(found.low[0] > 0 or found.high[0] < 0 for found in alone)
    assert wrong > 12


def test_a_true_difference_is_seen_among_many_without_one():
    draw, seen = np.random.default_rng(0), 0
    for seed in range(40):
        block = null_scores(draw, 400, 0.7, 25)
        block[:, 7] = np.minimum(block[:, 7] + (draw.random(400) < 0.15), 1)
        [found] = differences([block], seed, draws=500)
        seen += bool(found.low[7] > 0)
    assert seen >= 38


@pytest.mark.parametrize("tests", [1, 2, 7, 25, 300])
def test_fewer_samples_that_differ_could_not_be_shown_by_an_exact_sign_test(tests):
    def smallest_p(differ):
        return 2 * comb(differ, differ) / 2**differ

    fewest = fewest_that_differ([1000] * tests)
    assert smallest_p(fewest) <= 0.05 / tests < smallest_p(fewest - 1)
    assert fewest_that_differ([1000] * tests + [fewest_that_differ([1000]) - 1] * 50) == fewest


def test_what_few_samples_say_is_not_shown_and_costs_the_others_nothing():
    block = np.zeros((200, 2))
    block[:5, 0] = 1  # five wins and no loss
    block[:, 1] = np.random.default_rng(0).choice([0.0, 1.0], 200)
    [both], [alone] = differences([block]), differences([block[:, 1:]])
    assert both.low[0] <= 0 < both.mean[0] and both.differ[0] == 5
    assert alone.low[0] > 0 and both.low[1] == pytest.approx(alone.low[0], abs=0.02)


def test_a_method_that_loses_nearly_everything_does_not_blur_the_others():
    draw = np.random.default_rng(0)
    block = draw.choice([-1.0, 0.0, 1.0], size=(300, 2), p=[0.1, 0.7, 0.2])
    broken = np.concatenate([block, -np.ones((300, 1))], axis=1)
    broken[0, 2] = 0
    [alone], [beside] = differences([block]), differences([broken])
    assert beside.low[:2] == pytest.approx(alone.low, abs=0.015)
    assert beside.high[2] < -0.9


@pytest.mark.parametrize("samples", [1, 2, 5, 40])
def test_odd_families(samples):
    block = np.stack([np.zeros(samples), np.full(samples, -1.0), np.full(samples, 1 / 3)], axis=1)
    [found] = differences([block])
    assert np.all(found.low <= found.mean) and np.all(found.mean <= found.high)
    shown = samples >= fewest_that_differ([samples] * 2)
    assert [found.high[1] < 0, found.low[2] > 0] == [shown, shown]
    assert found.low[0] == found.high[0] == 0


def test_nothing_to_compare_and_nonsense():
    [found] = differences([np.zeros((4, 0))])
    assert found.mean.size == 0
    with pytest.raises(ValueError, match="every block needs a sample"):
        differences([np.zeros((0, 2))])
    with pytest.raises(ValueError, match=r"level 1\.5"):
        differences([np.zeros((3, 2))], level=1.5)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), samples=st.integers(2, 40))
def test_the_order_of_samples_changes_nothing_and_duplicates_tie(seed, samples):
    draw = np.random.default_rng(seed)
    block = draw.choice([-1.0, 0.0, 1 / 3, 1.0], size=(samples, 3))
    block = np.concatenate([block, block[:, :1]], axis=1)
    [one], [other] = differences([block], draws=200), differences([draw.permutation(block)], draws=200)
    for name in ("mean", "low", "high", "differ"):
        found = getattr(one, name)
        assert np.array_equal(found, getattr(other, name))
        assert found[0] == pytest.approx(found[3], abs=1e-12)


def test_blocks_of_other_samples_are_one_family():
    draw = np.random.default_rng(2)
    block = draw.choice([-1.0, 0.0, 1.0], size=(100, 4))
    together, alone = differences([block] * 9), differences([block])[0]
    for found in together:  # more is compared, so every interval is wider
        assert np.all(found.low < alone.low) and np.all(found.high > alone.high)
