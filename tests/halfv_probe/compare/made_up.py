"""Results of a comparison that never ran: scores are drawn, everything else follows from them."""

import numpy as np
import pandas as pd

TASKS = ("colour", "counting", "existence")


def rows_of(entrant, method, budget, right, *, seed=None, task=None, labelled=True, flops=None, **others):
    """One row a sample of an entrant whose replies are right where `right` says so."""
    right = np.asarray(right, bool)
    samples = np.arange(len(right))
    task = [TASKS[sample % 3] for sample in samples] if task is None else task
    answers = ["yes" if name == "existence" else "blue" for name in task]
    wrong = ["no" if name == "existence" else "red" for name in task]
    share = 1.0 if budget is None else budget
    table = dict(
        entrant=entrant,
        method=method,
        budget=budget,
        seed=seed,
        plan="" if method == "untouched" else f"{method}::{budget}",
        sample=samples,
        fingerprint=[f"{sample:04x}" for sample in samples],
        task=task,
        question="?",
        answer=answers if labelled else None,
        reply=np.where(right, answers, wrong),
        right=right if labelled else None,
        same=right,
        kl=np.where(right, 0.01, 1.0),
        visual_tokens=64,
        average_visual_tokens=64 * share,
        flops=0.2 + 0.8 * share if flops is None else flops,
    )
    return pd.DataFrame(table | others)


def made_up(samples=60, methods=("fastv", "divprune"), budgets=(0.5, 0.25), seed=0, skill=(), **others):
    """Untouched, three seeds of random, downsampling and methods at each budget.

    `skill` adds to the chance of a method to be right; all samples are equally hard.
    """
    draw = np.random.default_rng(seed)
    skill = dict(skill)

    def right(method, chance):
        return draw.random(samples) < np.clip(chance + skill.get(method, 0), 0, 1)

    parts = [rows_of("untouched", "untouched", None, right("untouched", 0.95), **others)]
    for budget in budgets:
        chance = 0.6 + 0.3 * budget
        for number in range(3):
            name = f"random_choice@{budget}#{number}"
            parts.append(rows_of(name, "random_choice", budget, right("random_choice", chance), seed=number, **others))
        for method in ("downsample", *methods):
            parts.append(rows_of(f"{method}@{budget}", method, budget, right(method, chance), **others))
    return pd.concat(parts, ignore_index=True)
