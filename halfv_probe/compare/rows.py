"""The result of a comparison as a table: one row a sample and entrant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from halfv_accel.answers import is_right
from halfv_accel.decoder import Decoder
from halfv_accel.flops import as_it_ran, prefill_flops, selection_flops, tokens_per_layer
from halfv_accel.plan import Plan
from halfv_accel.plan_text import describe_plan
from halfv_probe.compare.entrants import Entrant

COLUMNS = (
    "entrant",
    "method",
    "budget",
    "seed",
    "plan",
    "sample",
    "fingerprint",
    "task",
    "question",
    "answer",
    "reply",
    "right",
    "same",
    "kl",
    "visual_tokens",
    "average_visual_tokens",
    "flops",
)
TYPES = {"budget": "float64", "seed": "Int64", "answer": "object", "right": "boolean", "kl": "float64"}
UNLABELLED = "unlabelled"  # the task of samples of which none is known, as halfv_data names it


@dataclass(frozen=True)
class Asked:
    """A sample, the untouched model's reply, and the prompt's tokens.

    ``fingerprint`` tells it from other samples, ``ids`` are the token ids of the reply.
    """

    sample: Any
    fingerprint: str
    ids: list[int]
    reply: str
    visual: int
    text: int


@dataclass(frozen=True)
class Result:
    """What one entrant did on one sample.

    ``kl`` in nats is None where it was not measured. ``visual`` and ``text`` are the tokens that came into the decoder,
    ``kept`` the visual ones that each stage left.
    """

    reply: str
    kl: float | None
    visual: int
    text: int
    kept: list[int] = field(default_factory=list)


def rows_of(each: Entrant, asked: Sequence[Asked], results: Sequence[Result], config: Any) -> list[dict[str, Any]]:
    """One entrant's rows.

    Raises
    ------
    HalfVError
        If its strategy does not count its operations.
    """
    costs: dict[tuple[Any, ...], tuple[float, float]] = {}
    common = {"entrant": each.name, "method": each.method, "budget": each.budget, "seed": each.seed}
    rows = []
    for place, (one, result) in enumerate(zip(asked, results, strict=True)):
        sizes = (one.visual, one.text, result.visual, result.text, *result.kept)
        if sizes not in costs:
            costs[sizes] = _cost(config, one, result, each.plan)
        average, flops = costs[sizes]
        rows.append(
            {
                **common,
                "plan": describe_plan(each.plan),
                "sample": place,
                **_facts(one),
                "reply": result.reply,
                "right": None if one.sample.answer is None else is_right(result.reply, one.sample.answer),
                "same": result.reply == one.reply,
                "kl": result.kl,
                "visual_tokens": one.visual,
                "average_visual_tokens": average,
                "flops": flops,
            }
        )
    return rows


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """All rows as a table with the columns `COLUMNS`; what is not known is missing."""
    series = {name: pd.Series([row[name] for row in rows], dtype=TYPES.get(name)) for name in COLUMNS}
    return pd.DataFrame(series)


def _facts(one: Asked) -> dict[str, Any]:
    task = str(getattr(one.sample, "task", "") or "")
    return {
        "fingerprint": one.fingerprint,
        "task": "" if task == UNLABELLED else task,
        "question": one.sample.question,
        "answer": one.sample.answer,
    }


def _cost(config: Any, one: Asked, result: Result, plan: Plan | None) -> tuple[float, float]:
    """Visual tokens that a decoder layer processed, mean over layers, and prefill FLOPs with selection / untouched."""
    if plan is None:
        return float(one.visual), 1.0
    inside = plan.inside
    ran = as_it_ran(inside, result.kept)
    layers = Decoder.of(config).layers
    average = sum(active for active, _ in tokens_per_layer(layers, result.visual, ran)) / layers
    chosen = selection_flops(config, result.visual, inside, result.text, kept=result.kept or None)
    flops = prefill_flops(config, result.visual, result.text, ran) + chosen
    return average, flops / prefill_flops(config, one.visual, one.text)
