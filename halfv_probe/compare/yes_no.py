"""Questions that are answered by yes or no, as POPE counts them: accuracy, F1 and the share of replies that say yes.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023. "Yes" is the positive class. A
model that has lost the picture often says yes (or no) to everything, which accuracy alone does not show.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from halfv_accel.answers import is_right
from halfv_probe.compare.scores import pooled

ALL = "all"


@dataclass(frozen=True)
class YesNo:
    """Shares from 0 to 1; ``f1`` is 0 where no reply is a true yes, and NaN where nothing is or says yes."""

    accuracy: float
    f1: float
    yes_rate: float


def yes_no(replies: Sequence[str], answers: Sequence[str]) -> YesNo:
    """Count replies against answers, which are yes or no.

    Raises
    ------
    ValueError
        If there is no reply, or not one answer to each.
    """
    if not replies or len(replies) != len(answers):
        raise ValueError(f"{len(replies)} replies and {len(answers)} answers: give one to each, not none")
    said, true = [says_yes(reply) for reply in replies], [is_right(answer, "yes") for answer in answers]
    hits = sum(s and t for s, t in zip(said, true, strict=True))
    correct = sum(s == t for s, t in zip(said, true, strict=True))
    positives = sum(said) + sum(true)
    f1 = 2 * hits / positives if positives else float("nan")
    return YesNo(correct / len(said), f1, sum(said) / len(said))


def says_yes(reply: str) -> bool:
    """As POPE reads a reply: no, if its first sentence has the word "no" or "not"; anything else is a yes.

    >>> says_yes("Yes, there is."), says_yes("No."), says_yes("There is not."), says_yes("Yes. Not a doubt.")
    (True, False, False, True)
    """
    words = re.findall(r"\w+", reply.split(".")[0].casefold())
    return not {"no", "not"} & set(words)


def yes_no_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row an entrant and a task whose known answers are all yes or no; where there are several, "all" of them, too.

    Parameters
    ----------
    results : DataFrame
        `scores.typed`. Of pooled seeds, each is counted, and their mean is given.

    Returns
    -------
    DataFrame
        entrant, task, samples, accuracy, f1, yes_rate, and answers_yes (the share of answers that are yes).
    """
    results = results.assign(task=results["task"].fillna(""))
    known = results[results["answer"].notna()]
    binary = pd.Series([_binary(answer) for answer in known["answer"]], known.index, dtype=bool)
    tasks = [task for task, every in binary.groupby(known["task"]).all().items() if every]
    parts = {task: known[known["task"] == task] for task in tasks}
    if len(parts) > 1:
        parts[ALL] = known[known["task"].isin(tasks)]
    rows = [row for task, part in parts.items() for row in _rows(task, part)]
    columns = ["entrant", "task", "samples", "accuracy", "f1", "yes_rate", "answers_yes"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def _binary(answer: str) -> bool:
    return is_right(answer, "yes") or is_right(answer, "no")


def _rows(task: str, part: pd.DataFrame) -> list[dict]:
    counted = []
    for (name, _), rows in part.assign(pooled=pooled(part)).groupby(["pooled", "entrant"], sort=False):
        replies, answers = list(rows["reply"].fillna("")), list(rows["answer"])
        found = yes_no(replies, answers)
        true = sum(is_right(answer, "yes") for answer in answers) / len(answers)
        counted.append((name, len(rows), found.accuracy, found.f1, found.yes_rate, true))
    names = ["entrant", "samples", "accuracy", "f1", "yes_rate", "answers_yes"]
    means = pd.DataFrame(counted, columns=pd.Index(names)).groupby("entrant", sort=False).mean().reset_index()
    means = means.astype({"samples": "int64"})
    means.insert(1, "task", task)
    return means.to_dict("records")
