"""Everybody on the same samples: what each replies, whether that is the untouched model's reply, and what it costs.

Plans share their prefixes (`run_trials`), so a hundred of them cost a few times one. That also says whether a reply is
unchanged; where it is not, the text is generated, for those samples alone. Shrunk pictures are other inputs: there all
replies are generated. Each result is written down under its sample and its plan, so a comparison that was killed goes
on where it was, and one with more entrants measures these alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import pandas as pd

from halfv_accel import HalfVError, accelerate
from halfv_accel.adapters import family_of
from halfv_accel.downsample import MODEL_TYPES as SHRINKING
from halfv_accel.plan import Plan
from halfv_accel.processors import brief
from halfv_accel.prompts import batch_inputs
from halfv_probe.calibration.measurements import Measurements
from halfv_probe.compare.budgets import Typical
from halfv_probe.compare.entrants import Entrant, Refused
from halfv_probe.compare.rows import Asked, Result, frame, rows_of
from halfv_probe.trials.prompts import Prompts, turn
from halfv_probe.trials.replies import Replies, greedy_replies
from halfv_probe.trials.walk import run_trials

Outcome = list[Any] | str  # [same, kl, kept by each stage] of one plan on one sample; or why the plan failed


def ask_untouched(measure: Measurements) -> list[Asked]:
    """The untouched model's reply to every sample.

    Parameters
    ----------
    measure : Measurements
        Over `Prompts`: prepared inputs have no answers, and no pictures to shrink.
    """
    prompts = _prompts(measure)
    names = [name for batch in measure.names for name in batch]
    return [
        Asked(sample, name, ids, _text(prompts, ids), visual, text)
        for sample, name, (ids, visual, text) in zip(prompts.samples, names, measure.each_reply(), strict=True)
    ]


def typical_prompt(measure: Measurements, asked: Sequence[Asked]) -> Typical:
    """What budgets are matched on: the samples' mean tokens, rounded."""
    config, count = measure.model.config, len(asked)
    visual, text = sum(one.visual for one in asked), sum(one.text for one in asked)
    return Typical(config, round(visual / count), round(text / count), config.model_type in SHRINKING)


def compare(
    measure: Measurements, entrants: Sequence[Entrant], asked: Sequence[Asked]
) -> tuple[pd.DataFrame, list[Refused]]:
    """Run all entrants on all samples.

    Parameters
    ----------
    measure : Measurements
        Its journal keeps every result.
    entrants : sequence of Entrant
        With names of their own.
    asked : sequence of Asked
        From `ask_untouched`.

    Returns
    -------
    DataFrame
        One row an entrant and sample, see `halfv_probe.compare.rows`.
    list of (name, reason)
        Entrants that failed: they have no rows.
    """
    run = _Comparison(measure, asked)
    results = {each.name: run.untouched() for each in entrants if each.plan is None}
    shrinking = [each for each in entrants if each.plan is not None and each.plan.shrinks]
    results |= run.on_shared_prefixes([each for each in entrants if each.plan is not None and not each.plan.shrinks])
    results |= run.on_shrunk_pictures(shrinking)
    rows: list[dict[str, Any]] = []
    for each in entrants:
        if each.name in results:
            try:
                rows += rows_of(each, asked, results[each.name], measure.model.config)
            except HalfVError as error:  # a strategy that does not count its operations
                run.failed[each.name] = _sentence(error)
    return frame(rows), [(each.name, run.failed[each.name]) for each in entrants if each.name in run.failed]


class _Comparison:
    """One comparison; ``failed`` are the reasons, by name."""

    def __init__(self, measure: Measurements, asked: Sequence[Asked]) -> None:
        self.measure, self.asked = measure, asked
        self.model, self.prompts = measure.model, _prompts(measure)
        self.failed: dict[str, str] = {}

    def untouched(self) -> list[Result]:
        return [Result(one.reply, 0.0, one.visual, one.text) for one in self.asked]

    def on_shared_prefixes(self, entrants: Sequence[Entrant]) -> dict[str, list[Result]]:
        """Results of all plans that leave the pictures as they are, by name."""
        outcomes: dict[str, list[list[Any]]] = {}
        by_fidelity = sorted(entrants, key=_fidelity)
        for fidelity, group in groupby(by_fidelity, _fidelity):  # plans of both cannot share their layers
            outcomes |= self._trials(list(group), "plans" if fidelity == "paper" else f"plans ({fidelity})")
        changed = {
            each.name: [place for place, (same, _, _) in enumerate(outcomes[each.name]) if not same]
            for each in entrants
            if each.name in outcomes
        }
        texts = self._generated("changed replies", entrants, changed)
        return {
            name: [
                Result(texts[name].get(place, [one.reply])[0], kl, one.visual, one.text, kept)
                for place, (one, (_, kl, kept)) in enumerate(zip(self.asked, outcomes[name], strict=True))
            ]
            for name in texts
        }

    def on_shrunk_pictures(self, entrants: Sequence[Entrant]) -> dict[str, list[Result]]:
        """Results of plans that shrink pictures, by name: their replies are all generated."""
        everywhere = list(range(len(self.asked)))
        found = self._generated("shrunk pictures", entrants, {each.name: everywhere for each in entrants})
        return {
            name: [Result(text, None, visual, words, kept) for text, visual, words, kept in replies.values()]
            for name, replies in found.items()
        }

    def _trials(self, entrants: Sequence[Entrant], step: str) -> dict[str, list[list[Any]]]:
        """Outcomes on every sample, by name; an entrant that fails on a batch takes no part in the next ones."""
        found: dict[str, list[list[Any]]] = {each.name: [] for each in entrants}
        done, total = 0, len(self.asked)
        self.measure.progress(step, done, total)
        for index, names in enumerate(self.measure.names):
            running = [each for each in entrants if each.name not in self.failed]
            keys = [f"plan {_digest(each.plan)}/{name}" for each in running for name in names]
            outcomes = self.measure.journal.recall_all(keys, partial(self._try, index, done, running))
            for number, each in enumerate(running):
                mine: list[Outcome] = outcomes[number * len(names) : (number + 1) * len(names)]
                reasons = [outcome for outcome in mine if isinstance(outcome, str)]
                if reasons:
                    self.failed[each.name] = reasons[0]
                else:
                    found[each.name] += [outcome for outcome in mine if not isinstance(outcome, str)]
            done += len(names)
            self.measure.progress(step, done, total)
        return {name: outcomes for name, outcomes in found.items() if name not in self.failed}

    def _try(self, index: int, start: int, entrants: Sequence[Entrant], missing: list[int]) -> list[Outcome]:
        """Outcomes of some pairs of an entrant and a row of batch ``index``, whose first sample is ``start``."""
        width = self.measure.sizes[index]
        pairs = [divmod(place, width) for place in missing]
        rows = sorted({row for _, row in pairs})
        numbers = sorted({number for number, _ in pairs})
        whole = len(rows) == width
        samples = [self.asked[start + row].sample for row in rows]
        inputs = self.prompts[index] if whole else self.prompts.of(samples)
        replies = Replies([self.asked[start + row].ids for row in rows])
        plans = [plan for number in numbers if (plan := entrants[number].plan) is not None]
        by_entrant = dict(zip(numbers, _outcomes(self.model, inputs, replies, plans), strict=True))
        return [by_entrant[number][rows.index(row)] for number, row in pairs]

    def _generated(
        self, step: str, entrants: Sequence[Entrant], places: Mapping[str, Sequence[int]]
    ) -> dict[str, dict[int, list[Any]]]:
        """What entrants reply to some samples each, by name and place: [reply, visual, text, kept by each stage]."""
        found: dict[str, dict[int, list[Any]]] = {}
        done, total = 0, sum(map(len, places.values()))
        for each in entrants:
            wanted = places.get(each.name)
            if wanted is None or each.plan is None:
                continue
            tell = partial(self._tell, step, done, total)
            try:
                found[each.name] = self._replies(each.plan, wanted, tell)
            except Exception as error:  # whatever it is, the others go on
                self.failed[each.name] = _sentence(error)
                tell(len(wanted))
            done += len(wanted)
        return found

    def _tell(self, step: str, before: int, total: int, done: int) -> None:
        self.measure.progress(step, before + done, total)

    def _replies(self, plan: Plan, places: Sequence[int], tell: Callable[[int], None]) -> dict[int, list[Any]]:
        key, found = f"reply {_digest(plan)}", list[Any]()
        for start in range(0, len(places), self.prompts.rows):
            part = places[start : start + self.prompts.rows]
            keys = [f"{key}/{self.asked[place].fingerprint}" for place in part]
            found += self.measure.journal.recall_all(keys, partial(self._ask, plan, part))
            tell(len(found))
        return dict(zip(places, found, strict=True))

    def _ask(self, plan: Plan, part: Sequence[int], missing: list[int]) -> list[list[Any]]:
        """Generate replies to some samples of a batch."""
        turns = [turn(self.asked[part[place]].sample) for place in missing]
        inputs = batch_inputs(self.prompts.processor, turns, self.prompts.device, plan.downsample)
        with accelerate(self.model, plan.inside) as run:
            ids = greedy_replies(self.model, inputs).ids
        kept = [stage.after for stage in run.last.stages] if run.last is not None else []
        visual = family_of(self.model).visual_positions(inputs["input_ids"]).sum(dim=1).tolist()
        mask = inputs.get("attention_mask")
        width = inputs["input_ids"].shape[1]
        present = [width] * len(ids) if mask is None else mask.sum(dim=1).tolist()
        return [
            [_text(self.prompts, reply), visual[row], present[row] - visual[row], [after[row] for after in kept]]
            for row, reply in enumerate(ids)
        ]


def _outcomes(model: Any, inputs: Mapping[str, Any], replies: Replies, plans: Sequence[Plan]) -> list[list[Outcome]]:
    """Of each plan on each row: all together, and if that fails one at a time, so that only the broken ones fail."""
    found = None
    try:
        found = run_trials(model, inputs, replies, plans)
    except Exception as error:  # of a strategy, or of the memory
        if len(plans) == 1:
            return [[_sentence(error)] * len(replies.ids)]
    if found is None:
        return [outcomes for plan in plans for outcomes in _outcomes(model, inputs, replies, [plan])]
    return [
        [[bool(same[row]), float(kl[row]), [after[row] for after in kept]] for row in range(len(replies.ids))]
        for same, kl, kept in zip(found.same, found.kl, found.kept, strict=True)
    ]


def _prompts(measure: Measurements) -> Prompts:
    if not isinstance(measure.prompts, Prompts):
        raise ValueError("prepared inputs have no answers, and no pictures to shrink: give Prompts")
    return measure.prompts


def _text(prompts: Prompts, ids: list[int]) -> str:
    return str(prompts.processor.decode(ids, skip_special_tokens=True)).strip()


def _fidelity(each: Entrant) -> str:
    return "paper" if each.plan is None else each.plan.fidelity


def _digest(plan: Plan | None) -> str:
    return hashlib.sha256(repr(plan).encode()).hexdigest()[:12]


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) if isinstance(error, HalfVError) else f"{type(error).__name__}: {brief(error)}"
