"""From one row a sample and entrant to one score a sample and entrant, with the seeds of a random baseline pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Measure = Literal["accuracy", "agreement"]
UNTOUCHED, RANDOM, DOWNSAMPLE = "untouched", "random_choice", "downsample"  # methods that others are compared with
MEANS = {  # column of the results: of the tables
    "visual_tokens": "visual_tokens",
    "average_visual_tokens": "average_visual_tokens",
    "flops": "flops_share",
    "same": "agreement",
    "kl": "kl_nats",
}
TYPES = {
    "entrant": "string",
    "method": "string",
    "budget": "float64",
    "seed": "Int64",
    "plan": "string",
    "sample": "int64",
    "fingerprint": "string",
    "task": "string",
    "question": "string",
    "answer": "string",
    "reply": "string",
    "right": "boolean",
    "same": "bool",
    "kl": "float64",
    "visual_tokens": "float64",
    "average_visual_tokens": "float64",
    "flops": "float64",
}


@dataclass(frozen=True)
class Scores:
    """What each entrant scored on each sample.

    Parameters
    ----------
    entrants : DataFrame
        One row an entrant, in the order of the results: entrant, method, budget, plan, seeds (how many are pooled).
    values : (n, E) float64
        Between 0 and 1; the mean over pooled seeds.
    tasks : (n,) str
        Of each sample.
    others : dict of (n, E) float64
        By name of `MEANS`: what each entrant cost, and whether and how far it leaves the untouched model.
    """

    entrants: pd.DataFrame
    values: NDArray[np.float64]
    tasks: NDArray[np.str_]
    others: dict[str, NDArray[np.float64]]

    def where(self, kept: NDArray[np.bool_]) -> Scores:
        """Some of the entrants."""
        others = {name: values[:, kept] for name, values in self.others.items()}
        return Scores(self.entrants[kept].reset_index(drop=True), self.values[:, kept], self.tasks, others)

    def column(self, method: str, budget: float | None = None) -> int | None:
        """Which column is this method's at this budget (None: at none, or none at that budget)."""
        rows = self.entrants[(self.entrants["method"] == method) & of_budget(self.entrants, budget)]
        return None if rows.empty else int(rows.index[0])


def typed(results: pd.DataFrame) -> pd.DataFrame:
    """The results with the types of their columns; further columns as they are.

    Raises
    ------
    ValueError
        If a column is missing, or an entrant has two rows of one sample.
    """
    missing = [name for name in TYPES if name not in results]
    if missing:
        raise ValueError(f"the results lack the columns {', '.join(missing)}")
    twice = results.duplicated(["entrant", "sample"])
    if twice.any():
        first = results[twice].iloc[0]
        raise ValueError(f"the results hold {first['entrant']} twice for sample {first['sample']}")
    return results.astype(TYPES).reset_index(drop=True)


def whole(results: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The entrants that have a row for every sample; and the others, each with the reason in a sentence."""
    samples = results["sample"].nunique()
    counts = results.groupby("entrant", sort=False)["sample"].nunique()
    short = counts[counts < samples]
    left_out = [(str(name), f"has results on {count} of {samples} samples only") for name, count in short.items()]
    return results[~results["entrant"].isin(short.index)], left_out


def measure_of(results: pd.DataFrame) -> Measure:
    """Accuracy where answers are known and the untouched model (without it: anybody) gives one of them."""
    judged = results[results["right"].notna()]
    if (judged["method"] == UNTOUCHED).any():
        judged = judged[judged["method"] == UNTOUCHED]
    return "accuracy" if judged["right"].any() else "agreement"


def scores(results: pd.DataFrame, measure: Measure) -> Scores:
    """One score a sample and entrant; for accuracy of the samples whose answer is known.

    Parameters
    ----------
    results : DataFrame
        `typed`, and `whole`.
    """
    if measure == "accuracy":
        results = results[results["right"].notna()]
    score = results["right" if measure == "accuracy" else "same"].astype("float64")
    results = results.assign(score=score, pooled=pooled(results), same=results["same"].astype("float64"))
    order = list(dict.fromkeys(results["pooled"]))
    means = results.groupby(["sample", "pooled"])[["score", *MEANS]].mean()

    def table(column: str) -> NDArray[np.float64]:
        return means[column].unstack("pooled")[order].to_numpy(np.float64)

    tasks = results.groupby("sample")["task"].first().fillna("")
    others = {name: table(column) for column, name in MEANS.items()}
    return Scores(_entrants(results, order), table("score"), tasks.to_numpy(str), others)


def pooled(results: pd.DataFrame) -> pd.Series:
    """Name of the entrant that a row counts for: those that differ in their seed alone are one."""
    without = results["entrant"].str.rsplit("#", n=1).str[0]
    return results["entrant"].where(results["seed"].isna(), without)


def of_budget(entrants: pd.DataFrame, budget: float | None) -> pd.Series:
    """Which rows are of this budget; None: of no matched budget."""
    return entrants["budget"].isna() if budget is None else entrants["budget"] == budget


def budgets(entrants: pd.DataFrame) -> list[float | None]:
    """All budgets, the largest first, then None where some entrant but the untouched model has no matched budget."""
    found: list[float | None] = [*sorted(map(float, entrants["budget"].dropna().unique()), reverse=True)]
    given = entrants["budget"].isna() & (entrants["method"] != UNTOUCHED)
    return [*found, None] if given.any() else found


def _entrants(results: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    groups = results.groupby("pooled", sort=False)
    described = groups[["method", "budget", "plan"]].nth(0).set_axis(groups.head(1)["pooled"])
    described["seeds"] = groups["entrant"].nunique()
    return described.reindex(order).rename_axis("entrant").reset_index()
