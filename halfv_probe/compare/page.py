"""A comparison in words and tables: Markdown as papers print it, and the same rows for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from halfv_accel.published import METHODS
from halfv_probe.compare.plain_words import paragraph
from halfv_probe.compare.scores import RANDOM, UNTOUCHED, budgets, of_budget
from halfv_probe.compare.verdicts import BETTER, FEWEST_HARD, GAIN, LOSS, WORSE, Verdicts
from halfv_probe.views.canvas import middle_cut
from halfv_probe.views.landmarks import percent

Match = Literal["tokens", "flops"]
MATCHED = {
    "tokens": "the average number of visual tokens over decoder layers",
    "flops": "the exact FLOPs of the prefill, selection included, that keeping the budget before layer 0 would take",
}
MOST_TASKS = 12  # columns; more are in tasks.csv
LONGEST_NAME = 40
Row = dict[str, str]


def markdown(
    verdicts: Verdicts, failures: Sequence[tuple[str, str]], provenance: Mapping[str, Any], match: Match
) -> str:
    """The page."""
    parts = [
        "# All methods on the same samples",
        paragraph(verdicts),
        "![Frontier](frontier.png)",
        "## Results",
        _explained(verdicts, match),
        table(budget_rows(verdicts)),
    ]
    if not verdicts.hard.empty:
        parts += ["## Where the picture's detail is needed", _about_hard(verdicts), table(hard_rows(verdicts))]
    if not verdicts.yes_no.empty:
        parts += ["## Questions answered by yes or no", ABOUT_YES_NO, table(yes_no_rows(verdicts))]
    parts += ["## What did not run", table([{"entrant": name, "reason": why} for name, why in failures]) or "Nothing."]
    parts += ["## Where this comes from", _listed(provenance)]
    return "\n\n".join(parts) + "\n"


ABOUT_YES_NO = (
    "As POPE counts: a reply is a no if its first sentence has the word no or not, else a yes, and yes is the positive "
    "class. A yes-rate far from the answers' own is a model that no longer looks."
)


def rows(verdicts: Verdicts) -> list[Row]:
    """The main table for a terminal: header to cell, without tasks and intervals, for which its lines are too short."""
    wide = {*_tasks(verdicts), "to untouched", "to random", "to the best"}
    return [{name: cell for name, cell in row.items() if name not in wide} for row in budget_rows(verdicts)]


def budget_rows(verdicts: Verdicts) -> list[Row]:
    """Budget by budget, the untouched model first, the best of a budget before the others."""
    overall = verdicts.overall
    found = [_row(verdicts, row, "") for _, row in overall[overall["method"] == UNTOUCHED].iterrows()]
    for budget in budgets(overall):
        own = overall[of_budget(overall, budget) & (overall["method"] != UNTOUCHED)]
        for _, row in own.sort_values("score", ascending=False, kind="stable").iterrows():
            found.append(_row(verdicts, row, named(budget)))
    return found


def hard_rows(verdicts: Verdicts) -> list[Row]:
    """As `budget_rows`, on the samples that the downsampled entrant of each budget gets wrong."""
    found = []
    for budget, own in verdicts.hard.groupby("filter_budget", sort=False):
        for _, row in own.sort_values("score", ascending=False, kind="stable").iterrows():
            found.append(
                {
                    "budget": named(float(budget)),
                    "method": title(row),
                    "samples": str(row["samples"]),
                    **_scored(verdicts, row),
                }
            )
    return found


def yes_no_rows(verdicts: Verdicts) -> list[Row]:
    """One row an entrant and a task."""
    described = verdicts.overall.set_index("entrant")
    found = []
    for _, row in verdicts.yes_no.iterrows():
        if row["entrant"] not in described.index:
            continue
        entrant = described.loc[row["entrant"]]
        shares = {name: points(row[name]) for name in ("accuracy", "f1", "yes_rate", "answers_yes")}
        found.append(
            {
                "task": row["task"] or "all",
                "budget": "" if entrant["method"] == UNTOUCHED else named(entrant["budget"]),
                "method": title(entrant.rename(row["entrant"])),
                "samples": str(row["samples"]),
                "accuracy %": shares["accuracy"],
                "F1 %": shares["f1"],
                "yes %": shares["yes_rate"],
                "answers that are yes %": shares["answers_yes"],
            }
        )
    return found


def title(row: pd.Series) -> str:
    """A name for people: the method's, or of a plan or profile what it is."""
    name = str(row.get("entrant", row.name))
    if row["method"] == RANDOM and row["seeds"] > 1:
        return f"random (mean of {row['seeds']} seeds)"
    if row["method"] in METHODS:
        return METHODS[row["method"]].title
    return middle_cut(name, LONGEST_NAME)


def named(budget: float | None) -> str:
    """A budget for people.

    >>> named(0.25), named(None)
    ('25%', 'own')
    """
    return "own" if budget is None or pd.isna(budget) else percent(budget)


def points(share: float) -> str:
    """A share in percent, to a tenth; a dash where there is none.

    >>> points(0.1234), points(float("nan"))
    ('12.3', '-')
    """
    return "-" if pd.isna(share) else f"{100 * share:.1f}"


def table(found: Sequence[Row]) -> str:
    """Rows as a table of Markdown; nothing without rows."""
    if not found:
        return ""
    header = list(found[0])
    lines = [header, ["---"] * len(header), *([row[name] for name in header] for row in found)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _row(verdicts: Verdicts, row: pd.Series, budget: str) -> Row:
    return {
        "budget": budget,
        "method": title(row),
        "avg. visual tokens": f"{row['average_visual_tokens']:.1f}",
        "FLOPs %": points(row["flops_share"]),
        **{name: _of_task(verdicts, row["entrant"], name) for name in _tasks(verdicts)},
        **_scored(verdicts, row),
    }


def _scored(verdicts: Verdicts, row: pd.Series) -> Row:
    """Score, what is left of the untouched model's, differences with intervals, and verdicts."""
    cells = {f"{verdicts.measure} %": points(row["score"])}
    if verdicts.measure == "accuracy":
        cells["relative %"] = "-" if pd.isna(row["relative_percent"]) else f"{row['relative_percent']:.1f}"
        cells["to untouched"] = _difference(row, "untouched")
    else:
        cells["KL (nats)"] = "-" if pd.isna(row["kl_nats"]) else f"{row['kl_nats']:.3g}"
    cells |= {"to random": _difference(row, "random"), "to the best": _difference(row, "best")}
    said = (row["against_random"], row["against_untouched"])
    return cells | {"verdict": "; ".join(words for words in said if isinstance(words, str))}


def _difference(row: pd.Series, name: str) -> str:
    """In points, with the interval."""
    if pd.isna(row[f"to_{name}"]):
        return "-"
    mean, low, high = (100 * row[f"to_{name}{part}"] + 0.0 for part in ("", "_low", "_high"))
    return "0" if mean == low == high == 0 else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _of_task(verdicts: Verdicts, entrant: str, task: str) -> str:
    """A score, with a mark where it is shown to differ from random's, or without one from the untouched model's."""
    found = verdicts.tasks[(verdicts.tasks["entrant"] == entrant) & (verdicts.tasks["task"] == task)].iloc[0]
    marks = {BETTER: "↑", WORSE: "↓", LOSS: "*", GAIN: "+"}
    said = (found["against_random"], found["against_untouched"])
    return points(found["score"]) + "".join(marks.get(words, "") for words in said if isinstance(words, str))


def _tasks(verdicts: Verdicts) -> list[str]:
    """Tasks that have a column: those with most samples."""
    if verdicts.tasks["task"].nunique() < 2:
        return []
    sizes = verdicts.tasks.groupby("task", sort=True)["samples"].first().sort_values(ascending=False, kind="stable")
    return sorted(name for name in sizes.index[:MOST_TASKS] if name)


def _explained(verdicts: Verdicts, match: Match) -> str:
    counted = "replies that equal the answer" if verdicts.measure == "accuracy" else "replies that do not change"
    lines = [
        f"Budgets are matched on {MATCHED[match]}; both are printed, FLOPs as a share of the untouched prefill.",
        f"{verdicts.measure.capitalize()} is the share of {counted}, over {verdicts.samples} samples"
        + (f" ({verdicts.unlabelled} more have no known answer)." if verdicts.unlabelled else "."),
        f"Differences are paired, in points, with bootstrap intervals of {verdicts.draws} draws of samples (seed "
        f"{verdicts.seed}) that hold for all entrants of a budget at once with {100 * verdicts.level:g} % confidence "
        "(max-T bootstrap, Romano and Wolf 2005). A verdict says only what its interval shows. Samples count as "
        "independent: several questions on one picture are not quite.",
    ]
    if _tasks(verdicts):
        rest = verdicts.tasks["task"].nunique() - len(_tasks(verdicts))
        lines.append(
            "In the columns of tasks, ↑ and ↓ are shown to be better or worse than random, * and + than untouched, "
            "corrected for all entrants of a budget in all tasks."
            + (f" {rest} smaller or unnamed tasks are in tasks.csv." if rest else "")
        )
    return " ".join(lines)


def _about_hard(verdicts: Verdicts) -> str:
    return (
        "The same on those samples alone that the picture downsampled to the same budget gets wrong, as VTC-Bench "
        f"filters them (budgets with fewer than {FEWEST_HARD} of them are left out). Downsampling itself has 0 here by "
        "construction. The untouched model may be wrong on them, too."
    )


def _listed(provenance: Mapping[str, Any]) -> str:
    def line(name: str, value: Any) -> str:
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        return f"- {name}: {_cell(shown)}"

    return "\n".join(line(name, value) for name, value in provenance.items()) or "Nothing was said."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
