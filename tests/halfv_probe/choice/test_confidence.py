"""Bounds against the binomial distribution written out, and a bootstrap whose votes are shares."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_probe.choice.confidence import samples_needed, upper_bound, votes

confidences = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])


def at_most(lost, samples, share):
    """Probability that at most so many of the samples are lost when each is with this probability."""
    return sum(comb(samples, k) * share**k * (1 - share) ** (samples - k) for k in range(lost + 1))


@given(counts=st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), confidence=confidences)
def test_at_the_bound_so_small_a_loss_is_as_unlikely_as_the_confidence_says(counts, confidence):
    lost, samples = counts
    bound = upper_bound(lost, samples, confidence)
    assert lost / samples <= bound <= 1
    if lost < samples:
        assert at_most(lost, samples, bound) == pytest.approx(1 - confidence, rel=1e-6)
    else:
        assert bound == 1


@given(max_drop=st.sampled_from([0.5, 0.3, 0.25, 0.1, 0.05, 0.02, 0.01, 0.003]), confidence=confidences)
def test_the_least_number_of_samples_that_can_show_a_small_loss(max_drop, confidence):
    least = next(n for n in range(1, 10_000) if (1 - max_drop) ** n <= (1 - confidence) * (1 + 1e-12))
    assert samples_needed(max_drop, confidence) == least
    assert upper_bound(0, least, confidence) <= max_drop * (1 + 1e-9)
    assert least == 1 or upper_bound(0, least - 1, confidence) > max_drop


@pytest.mark.parametrize("power", range(1, 12))
def test_exact_powers_need_no_sample_more(power):
    assert samples_needed(0.5, 1 - 0.5**power) == power


def noisy(outcomes):
    """A choice of two: the outcome met most often, and whether sample 0 was drawn."""
    return lambda drawn: (int(np.bincount(outcomes[drawn]).argmax()), bool((drawn == 0).any()))


@given(outcomes=st.lists(st.integers(0, 3), min_size=1, max_size=30).map(np.array), seed=st.integers(0, 5))
@settings(max_examples=20)
def test_votes_are_shares_of_resamples(outcomes, seed):
    seen = []

    def choose(drawn):
        assert drawn.shape == outcomes.shape and set(drawn) <= set(range(len(outcomes)))
        seen.append(noisy(outcomes)(drawn))
        return seen[-1]

    found = votes(len(outcomes), choose, seed, 40)
    assert len(seen) == 40
    for place, shares in enumerate(found):
        chosen = [str(choice[place]) for choice in seen]
        assert shares == {value: chosen.count(value) / 40 for value in set(chosen)}
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert sum(shares.values()) == pytest.approx(1)
    assert votes(len(outcomes), noisy(outcomes), seed, 40) == found


def test_another_seed_draws_other_samples():
    drawn = []
    for seed in range(3):
        votes(50, lambda samples: (drawn.append(tuple(samples)),), seed, 3)
    assert len(set(drawn)) == 9


def test_samples_are_drawn_with_replacement():
    """Of n samples, 1 - 1/e are met in a resample."""
    met = []
    votes(1000, lambda drawn: (met.append(len(set(drawn)) / 1000),), 0, 50)
    assert np.mean(met) == pytest.approx(1 - np.exp(-1), abs=0.01)
