"""What a comparison tells, in sentences: who can be told apart from random and from the untouched model, who cannot."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from halfv_accel.published import METHODS
from halfv_probe.compare.scores import RANDOM, UNTOUCHED, budgets, of_budget
from halfv_probe.compare.verdicts import BELOW_BEST, BEST, BETTER, GAIN, LIKE, LOSS, WORSE, Verdicts
from halfv_probe.views.landmarks import percent

MOST_NAMES = 8
ENOUGH_RIGHT = 0.5  # as in calibration: below, answers may be of another kind than the model's


def paragraph(verdicts: Verdicts) -> str:
    """One paragraph; every number in it is in the tables."""
    overall = verdicts.overall
    said = [_measured(verdicts)]
    for budget in budgets(overall):
        own = overall[of_budget(overall, budget) & (overall["method"] != UNTOUCHED)]
        said.append(_of_budget(own, "Of plans without a matched budget" if budget is None else f"At {percent(budget)}"))
    said.append(_resolution(overall))
    said.append("What is not told apart is not shown to be equal.")
    return " ".join(part for part in said if part)


def _measured(verdicts: Verdicts) -> str:
    overall = verdicts.overall
    untouched = overall.loc[overall["method"] == UNTOUCHED, "score"]
    if verdicts.measure == "agreement":
        return (
            f"On {verdicts.samples} samples without answers to go by, this counts replies that stay those of the "
            "untouched model; a changed reply need not be a worse one."
        )
    if untouched.empty:
        return f"On {verdicts.samples} samples, without the untouched model beside it."
    first = f"On {verdicts.samples} samples the untouched model is right on {percent(untouched.iloc[0])}."
    if untouched.iloc[0] < ENOUGH_RIGHT:
        first += " That is little: if its answers are of another form than the labels, look at agreement instead."
    return first


def _of_budget(own: pd.DataFrame, where: str) -> str:
    against = own["against_random"]
    rivals = own[own["method"] != RANDOM]
    parts = []
    if against.notna().any():
        counts = [(against == words, text) for words, text in ((BETTER, "better"), (WORSE, "worse"))]
        told = [f"{_names(own[which])} {_are(which)} {text} than random" for which, text in counts if which.any()]
        like = int((against == LIKE).sum())
        told.append(f"{like} of {len(rivals)} cannot be told apart from it" if like else "")
        parts.append(", ".join(part for part in told if part))
    best, below = own["against_best"] == BEST, own["against_best"] == BELOW_BEST
    if best.any() and len(own) > 1:
        near = len(own) - int(best.sum()) - int(below.sum())
        rest = f", {near} of the others cannot be told apart from it" if near else ", and it stands alone"
        parts.append(f"the highest score is {percent(float(own.loc[best, 'score'].iloc[0]))} ({_names(own[best])}){rest}")
    lost, gained = own["against_untouched"] == LOSS, own["against_untouched"] == GAIN
    if own["against_untouched"].notna().any():
        parts.append(f"a loss against the untouched model is shown for {int(lost.sum())} of {len(own)}")
        if gained.any():
            parts.append(f"a gain for {_names(own[gained])}")
    return f"{where}: {'; '.join(parts)}." if parts else ""


def _resolution(overall: pd.DataFrame) -> str:
    """How small a difference these samples can show."""
    for name in ("random", "untouched"):
        half = ((overall[f"to_{name}_high"] - overall[f"to_{name}_low"]) / 2).median()
        if half > 0:
            return f"Here a difference to {name} must be about {100 * half:.1f} points to be seen."
    return ""


def _names(own: pd.DataFrame) -> str:
    names = [_name(row) for _, row in own.iterrows()]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return _listed(names) if not more else ", ".join(names[:MOST_NAMES]) + more


def _name(row: pd.Series) -> str:
    if row["method"] == RANDOM and pd.notna(row["budget"]):
        return "random itself"
    return METHODS[row["method"]].title if row["method"] in METHODS else str(row["entrant"])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _are(which: pd.Series) -> str:
    return "is" if which.sum() == 1 else "are"
