"""What can be told apart: every entrant beside the untouched model, beside random and beside the best of its budget.

Differences are paired, sample by sample, and their bootstrap intervals hold for all entrants of one budget at once
(`resampling`), so a verdict is not the luck of one of many. Against random and against the untouched model that is one
family each; for the best it is all pairs, because which one is best was seen on the same samples. Verdicts on tasks are
corrected for all entrants of a budget in all tasks. Budgets are families of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from halfv_probe.compare.resampling import DRAWS, LEVEL, Differences, differences, interval
from halfv_probe.compare.scores import (
    DOWNSAMPLE,
    RANDOM,
    UNTOUCHED,
    Measure,
    Scores,
    budgets,
    measure_of,
    of_budget,
    scores,
    typed,
    whole,
)
from halfv_probe.compare.yes_no import yes_no_table

BETTER, LIKE, WORSE = "better than random", "not distinguishable from random", "worse than random"
GAIN, NO_LOSS, LOSS = "better than untouched", "no loss shown", "worse than untouched"
BEST, LIKE_BEST, BELOW_BEST = "best", "not distinguishable from the best", "worse than the best"
AGAINST_RANDOM, AGAINST_UNTOUCHED = (WORSE, LIKE, BETTER), (LOSS, NO_LOSS, GAIN)
FEWEST_HARD = 30  # samples that the downsampled entrant must miss before a table of them is worth reading
Pick = Callable[[Scores, "float | None"], "int | None"]


@dataclass(frozen=True)
class Verdicts:
    """All tables of a comparison.

    Parameters
    ----------
    measure : {"accuracy", "agreement"}
        With answers that are known, or with the untouched model's replies.
    samples, unlabelled : int
        Samples counted, and those left out because no answer is known.
    overall, tasks, hard : DataFrame
        One row an entrant; an entrant and a task; an entrant and a budget on those
        samples alone that the entrant downsampled to this budget gets wrong (empty where there are too few). Scores and
        differences are shares of samples: ``score``, ``relative_percent`` (of the untouched model's), and for
        ``random``, ``untouched`` and ``best`` the difference ``to_...`` with ``..._low`` and ``..._high``, the samples
        that ``..._differ``, and the verdict ``against_...``.
    yes_no : DataFrame
        `yes_no.yes_no_table`.
    left_out : list of (str, str)
        Entrants without a result on every sample, and why.
    draws, level, seed
        Of the bootstrap.
    """

    measure: Measure
    samples: int
    unlabelled: int
    overall: pd.DataFrame
    tasks: pd.DataFrame
    hard: pd.DataFrame
    yes_no: pd.DataFrame
    left_out: list[tuple[str, str]] = field(default_factory=list)
    draws: int = DRAWS
    level: float = LEVEL
    seed: int = 0


def judge(
    results: pd.DataFrame,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
    measure: Measure | None = None,
) -> Verdicts:
    """Every table from one row a sample and entrant.

    Parameters
    ----------
    results : DataFrame
        Columns as `scores.TYPES`. The order of rows and the numbers of samples change nothing.
    measure : {"accuracy", "agreement"}, optional
        Found by `measure_of` if left out.

    Raises
    ------
    ValueError
        If columns are missing, an entrant has two rows of a sample, or no row is left.
    """
    complete, left_out = whole(typed(results))
    if complete.empty:
        raise ValueError("no entrant has a result on every sample")
    measure = measure or measure_of(complete)
    if measure == "accuracy" and complete["right"].isna().all():
        raise ValueError("accuracy needs answers: no sample has one")
    found = scores(complete, measure)
    bootstrap = Bootstrap(seed, draws, level)
    samples = len(found.values)
    return Verdicts(
        measure=measure,
        samples=samples,
        unlabelled=complete["sample"].nunique() - samples,
        overall=_compared(found, [np.ones(samples, bool)], bootstrap, measure)[0],
        tasks=_by_task(found, bootstrap, measure),
        hard=_hard(found, bootstrap) if measure == "accuracy" else pd.DataFrame(),
        yes_no=yes_no_table(complete),
        left_out=left_out,
        draws=draws,
        level=level,
        seed=seed,
    )


@dataclass(frozen=True)
class Bootstrap:
    """How samples are drawn."""

    seed: int
    draws: int
    level: float

    def differences(self, families: Sequence[NDArray[np.float64]], mirrored: bool = False) -> list[Differences]:
        return differences(families, self.seed, self.draws, self.level, mirrored)

    def interval(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return interval(values, self.seed, self.draws, self.level)


def _by_task(found: Scores, bootstrap: Bootstrap, measure: Measure) -> pd.DataFrame:
    names = sorted(set(found.tasks))
    tables = _compared(found, [found.tasks == name for name in names], bootstrap, measure)
    for name, table in zip(names, tables, strict=True):
        table.insert(1, "task", name)
    return pd.concat(tables, ignore_index=True)


def _hard(found: Scores, bootstrap: Bootstrap) -> pd.DataFrame:
    """VTC-Bench's filter: only samples that need the picture's detail tell pruning methods apart.

    The downsampled entrant itself is wrong on all of them, so it has no row.
    """
    parts = []
    for budget in budgets(found.entrants):
        shrunk = found.column(DOWNSAMPLE, budget)
        missed = np.zeros(len(found.values), bool) if shrunk is None else found.values[:, shrunk] < 1
        kept = of_budget(found.entrants, budget) & (found.entrants["method"] != DOWNSAMPLE)
        if budget is None or missed.sum() < FEWEST_HARD:
            continue
        kept |= found.entrants["method"] == UNTOUCHED
        table = _compared(found.where(kept.to_numpy(bool)), [missed], bootstrap, "accuracy")[0]
        table["filter_budget"] = budget
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _compared(
    found: Scores, masks: Sequence[NDArray[np.bool_]], bootstrap: Bootstrap, measure: Measure
) -> list[pd.DataFrame]:
    """One table for each part of the samples; all parts are one family."""
    blocks = [found.values[mask] for mask in masks]
    tables = [_levels(found, mask, bootstrap) for mask in masks]
    _beside(tables, found, blocks, bootstrap, "untouched", lambda scores, _: scores.column(UNTOUCHED))
    _beside(tables, found, blocks, bootstrap, "random", _random)
    for table in tables:
        _add_columns(table, "best")
    for budget in budgets(found.entrants):
        _beside_best(tables, found, blocks, bootstrap, budget)
    if measure == "agreement":  # the untouched model agrees with itself: any changed reply would be a loss
        for table in tables:
            table["against_untouched"] = None
    return tables


def _levels(found: Scores, mask: NDArray[np.bool_], bootstrap: Bootstrap) -> pd.DataFrame:
    block = found.values[mask]
    low, high = bootstrap.interval(block)
    table = found.entrants.assign(samples=len(block))
    for name, values in found.others.items():
        table[name] = pd.DataFrame(values[mask]).mean()  # NaN where nothing was measured
    table = table.assign(score=block.mean(axis=0), low=low, high=high)
    untouched = found.column(UNTOUCHED)
    whole_score = float("nan") if untouched is None else block[:, untouched].mean()
    table["relative_percent"] = 100 * table["score"] / (whole_score if whole_score > 0 else float("nan"))
    return table


def _random(found: Scores, budget: float | None) -> int | None:
    return None if budget is None else found.column(RANDOM, budget)


def _beside(
    tables: list[pd.DataFrame],
    found: Scores,
    blocks: Sequence[NDArray[np.float64]],
    bootstrap: Bootstrap,
    name: str,
    pick: Pick,
) -> None:
    """Add differences to a reference and verdicts: a family is all entrants of one budget in all tables."""
    words = AGAINST_RANDOM if name == "random" else AGAINST_UNTOUCHED
    for table in tables:
        _add_columns(table, name)
    for budget in budgets(found.entrants):
        reference = pick(found, budget)
        others = [int(c) for c in found.entrants.index[of_budget(found.entrants, budget)] if c != reference]
        others = [c for c in others if found.entrants["method"][c] != UNTOUCHED]
        if reference is None or not others:
            continue
        families = [block[:, others] - block[:, [reference]] for block in blocks]
        for table, difference in zip(tables, bootstrap.differences(families), strict=True):
            _fill(table, others, name, difference, [words[1 + side] for side in sides(difference)])


def _beside_best(
    tables: list[pd.DataFrame],
    found: Scores,
    blocks: Sequence[NDArray[np.float64]],
    bootstrap: Bootstrap,
    budget: float | None,
) -> None:
    """Add differences to the best of a budget: a family is all pairs of its entrants in all tables."""
    own = of_budget(found.entrants, budget) & (found.entrants["method"] != UNTOUCHED)
    columns = [int(column) for column in found.entrants.index[own]]
    pairs = list(combinations(range(len(columns)), 2))
    if not pairs:
        return
    first, second = np.array(pairs).T
    families = [block[:, columns][:, first] - block[:, columns][:, second] for block in blocks]
    for table, pair in zip(tables, bootstrap.differences(families, mirrored=True), strict=True):
        means = table["score"].to_numpy()[columns]
        top = int(np.argmax(np.round(means, 12)))
        difference = _to_one(pair, first, second, top)
        ties = np.isclose(means, means[top], rtol=0, atol=1e-12)
        words = [
            BEST if tie else BELOW_BEST if side < 0 else LIKE_BEST
            for tie, side in zip(ties, sides(difference), strict=True)
        ]
        _fill(table, columns, "best", difference, words)


def _to_one(pair: Differences, first: NDArray[np.intp], second: NDArray[np.intp], one: int) -> Differences:
    """Of all pairs, the difference of each column to one of them; its own is 0."""
    size = int(second.max()) + 1
    mean, low, high, differ = np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size, np.int64)
    here, there = second == one, first == one  # the other one is taken from, or takes from it
    for others, places, sign in ((first[here], here, 1), (second[there], there, -1)):
        mean[others], differ[others] = sign * pair.mean[places], pair.differ[places]
        below, above = (pair.low, pair.high) if sign > 0 else (-pair.high, -pair.low)
        low[others], high[others] = below[places], above[places]
    return Differences(mean + 0.0, low + 0.0, high + 0.0, differ)  # no negative zero


def sides(difference: Differences) -> NDArray[np.int64]:
    """1 where a gain is shown, -1 where a loss is, else 0."""
    return (difference.low > 0).astype(np.int64) - (difference.high < 0)


def _add_columns(table: pd.DataFrame, name: str) -> None:
    for column in (f"to_{name}", f"to_{name}_low", f"to_{name}_high"):
        table[column] = float("nan")
    table[f"to_{name}_differ"] = pd.Series(pd.NA, index=table.index, dtype="Int64")
    table[f"against_{name}"] = pd.Series(None, index=table.index, dtype="object")


def _fill(table: pd.DataFrame, rows: list[int], name: str, found: Differences, verdicts: list[str]) -> None:
    table.loc[rows, f"to_{name}"] = found.mean
    table.loc[rows, f"to_{name}_low"] = np.maximum(found.low, -1)  # of shares, no difference is larger
    table.loc[rows, f"to_{name}_high"] = np.minimum(found.high, 1)
    table.loc[rows, f"to_{name}_differ"] = found.differ
    table.loc[rows, f"against_{name}"] = verdicts
