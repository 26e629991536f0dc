"""Choosing a plan from what plans did: evidence first, curves as guide.

Three goals. ``paper`` keeps the ratios of Table 9 for the mode that was found (`mode`) and asks which layers: the
cheapest plan that loses at most half a point more of the answers than the most careful one with these ratios.
``target_flops``
takes, of all plans within the budget, the one that loses least. ``max_drop`` tests plans on samples that had no part in
choosing them, from the most faithful to the cheapest, each by a one-sided Clopper-Pearson bound, and takes the last one
before the first that is not shown to stay below the limit.

Where losses are equal, the smaller KL divergence decides: it sees what a plan is about to break.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from halfv_accel import HalfVError
from halfv_accel.evidence import Goal
from halfv_probe.choice.confidence import upper_bound
from halfv_probe.choice.mode import surely_positive
from halfv_probe.trials.candidates import Candidate
from halfv_probe.trials.outcomes import Trials

TOLERANCE = 0.005  # of the goal "paper": share of answers lost beyond the most careful plan's
BRACKETS = 32  # of equal width in FLOPs, in each of which a first look keeps the best candidates
PER_BRACKET = 2
CONTENDERS = 12  # plans within a budget that are run on all samples


def choose(trials: Trials[Candidate], goal: Goal, tolerance: float = TOLERANCE) -> int:
    """Number of the best candidate for a goal.

    Parameters
    ----------
    trials : Trials
        For the goal ``paper`` of one mode and its ratios.
    tolerance : float
        Of the goal ``paper``: share of answers lost beyond the most careful plan's.

    Raises
    ------
    HalfVError
        If no candidate reaches the goal.
    """
    if goal.kind == "max_drop":
        return _last_shown(trials, goal)
    numbers = worthwhile(trials)
    asked = trials.where(numbers)
    if goal.kind == "target_flops":
        return int(numbers[_most_faithful(asked, goal.value or 0.0)])
    drop = asked.drop
    return int(numbers[_cheapest(asked, drop <= drop.min() + tolerance + 1e-9)])


def worthwhile(trials: Trials[Candidate]) -> NDArray[np.intp]:
    """Numbers of the candidates without variants that are not surely better than the plain plan.

    Of many variants of a plan one loses least by chance. So other anchors or another scorer count only where they keep
    more answers than the plain plan by more than chance explains (paired, 95 %), or where that one was not run.
    """
    number = {candidate: n for n, candidate in enumerate(trials.candidates)}
    lost = trials.lost.astype(np.float64)
    kept = []
    for n, candidate in enumerate(trials.candidates):
        plain = number.get(candidate.plain, n)
        if plain == n or surely_positive(lost[plain] - lost[n]):
            kept.append(n)
    return np.array(kept, dtype=np.intp)


def hopeful(trials: Trials[Candidate], tolerance: float = TOLERANCE) -> Trials[Candidate]:
    """Candidates that may still prove to lose no more than the tolerance beyond the most careful one.

    After a look at some samples, those are out whose loss is larger by more than the tolerance and by more than chance
    explains (paired differences, 95 %).
    """
    most_careful = trials.lost[_by_faith(trials)[0]].astype(np.float64)
    out = [surely_positive(lost - most_careful - tolerance) for lost in trials.lost]
    return trials.where(~np.array(out))


def finalists(trials: Trials[Candidate], goal: Goal) -> Trials[Candidate]:
    """Candidates worth all samples, after a first look at some: the most faithful of every FLOPs bracket.

    Within a budget, where cost no longer counts, the most faithful of all come along.
    """
    kept = trials
    if goal.kind == "target_flops":
        kept = trials.where(_within(trials, goal.value or 0.0))
    if not kept.candidates:
        return kept
    low, high = kept.flops.min(), kept.flops.max()
    brackets = np.minimum((kept.flops - low) / max(high - low, 1e-12) * BRACKETS, BRACKETS - 1).astype(int)
    order = _by_faith(kept)
    chosen = [number for bracket in range(BRACKETS) for number in order[brackets[order] == bracket][:PER_BRACKET]]
    if goal.kind == "target_flops":
        chosen.extend(number for number in order[: BRACKETS * PER_BRACKET] if number not in chosen)
    return kept.where(np.array(sorted(chosen)))


def contenders(trials: Trials[Candidate], goal: Goal) -> Trials[Candidate]:
    """The few finalists worth the last look.

    Within a budget, the most faithful. For a promise, those that no cheaper one is as faithful as, from the most
    faithful to the cheapest: in this order they will be tested.
    """
    trials = trials.where(worthwhile(trials))
    order = _by_faith(trials)
    if goal.kind != "max_drop":
        return trials.where(np.sort(order[:CONTENDERS]))
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order))
    front = pareto(trials.flops.tolist(), rank.tolist())
    return trials.where(np.array(front[::-1]))


def promising(trials: Trials[Candidate], goal: Goal, count: int) -> list[Candidate]:
    """The plans of which other anchors and other scorers are worth a look: those that would be chosen by this look.

    Within a budget, the most faithful; for a promise, the cheapest contenders that keep it so far.
    """
    if goal.kind == "target_flops":
        kept = trials.where(_within(trials, goal.value or 0.0))
        return [kept.candidates[number] for number in _by_faith(kept)[:count]]
    front = contenders(trials, goal)
    keeping = [n for n in range(len(front.candidates)) if front.drop[n] <= (goal.value or 0.0)]
    return [front.candidates[number] for number in keeping[-count:]]


def chooser(trials: Trials[Candidate], goal: Goal) -> Callable[[NDArray[np.intp]], tuple[int, int | None, str]]:
    """For the bootstrap: from drawn samples to (IVR layer, SSR layer, mode). A goal out of reach gives the fallback."""

    def again(samples: NDArray[np.intp]) -> tuple[int, int | None, str]:
        drawn = trials.of(samples)
        try:
            best = choose(drawn, goal)
        except HalfVError:
            best = int(_by_faith(drawn)[0])
        candidate = trials.candidates[best]
        return candidate.ivr_layer, candidate.ssr_layer, candidate.ssr_mode

    return again


def _by_faith(trials: Trials[Candidate]) -> NDArray[np.intp]:
    """Numbers of the candidates, the most faithful first: fewest lost, then smallest KL."""
    return np.lexsort((trials.kl.mean(axis=1), trials.drop))


def _cheapest(trials: Trials[Candidate], allowed: NDArray[np.bool_]) -> int:
    """Of the allowed candidates the cheapest, or of its variants (other anchors, other scorers) the most faithful.

    What anchors cost is next to nothing and must not decide.
    """
    numbers = np.flatnonzero(allowed).tolist()

    def cost(n: int) -> tuple[float, float, float]:
        return round(float(trials.flops[n]), 6), float(trials.drop[n]), float(trials.kl[n].mean())

    kind = trials.candidates[min(numbers, key=cost)].kind
    variants = [n for n in numbers if trials.candidates[n].kind == kind]
    return int(min(variants, key=lambda n: cost(n)[1:] + cost(n)[:1]))


def _within(trials: Trials[Candidate], budget: float) -> NDArray[np.bool_]:
    return trials.flops <= budget + 1e-9


def _most_faithful(trials: Trials[Candidate], budget: float) -> int:
    within = np.flatnonzero(_within(trials, budget))
    if len(within) == 0:
        raise HalfVError(
            f"no plan needs only {budget:.0%} of the prefill FLOPs: the cheapest one tried needs "
            f"{trials.flops.min():.1%}, so allow that"
        )
    return int(within[_by_faith(trials.where(within))[0]])


def _last_shown(trials: Trials[Candidate], goal: Goal) -> int:
    """Test the candidates in their order, and stop at the first that is not shown to keep the promise.

    A sequence that was fixed beforehand may be tested at full confidence each (Maurer et al. 1995; for model choice,
    Angelopoulos et al. 2021, "Learn then Test"): only a plan that fails and passes by chance does harm, and the first
    such plan ends the sequence.
    """
    lost, samples, limit = trials.lost.sum(axis=1), trials.lost.shape[1], goal.value or 0.0
    passed = [upper_bound(int(each), samples, goal.confidence) <= limit for each in lost]
    if not passed[0]:
        raise HalfVError(
            f"no plan is shown to lose at most {limit:.1%} of the answers with {goal.confidence:.0%} confidence: the "
            f"most faithful one lost {int(lost[0])} of {samples}, so allow more with --max-drop, "
            "or give more --samples"
        )
    return (passed.index(False) if False in passed else len(passed)) - 1


def pareto(flops: Sequence[float], drop: Sequence[float]) -> list[int]:
    """Candidates that no other one equals or beats in both: numbers, the cheapest first; of equal ones the first."""
    front: list[int] = []
    for number in sorted(range(len(flops)), key=lambda n: (flops[n], drop[n])):
        if not front or drop[number] < drop[front[-1]]:
            front.append(number)
    return front
