"""What a calibration measures, batch by batch, each result written down as it comes, sample by sample.

A batch of which some samples are known already (one row of the data was mended) is measured for the others alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from halfv_accel.adapters import family_of
from halfv_accel.answers import is_right
from halfv_accel.plan import Fidelity
from halfv_probe.calibration.journal import Journal
from halfv_probe.measures.curves import SampleCurves, sample_curves
from halfv_probe.measures.lifecycle import SampleSpectra, boundary_spectra
from halfv_probe.measures.null import fresh
from halfv_probe.measures.redundancy import redundancies
from halfv_probe.measures.replay import Replay
from halfv_probe.trials.outcomes import C, Replied, Trials
from halfv_probe.trials.prompts import Prompts
from halfv_probe.trials.replies import Replies, greedy_replies
from halfv_probe.trials.walk import run_trials

Progress = Callable[[str, int, int], None]
CURVE_SAMPLES = 100  # curves are means and settle early (the paper's own number); promises may need more samples
FIRST_LOOK = 32  # samples on which all plans of the grid are run


@dataclass(frozen=True)
class Batch:
    """Which batch, and which of its rows."""

    index: int
    rows: list[int]


@dataclass
class Measurements:
    """One model on one set of prompts; every sample's result is remembered in the journal."""

    model: PreTrainedModel
    prompts: Sequence[Mapping[str, Any]] | Prompts
    fidelity: Fidelity
    journal: Journal
    progress: Progress
    names: list[list[str]] = field(init=False)  # of each batch, what tells each of its samples from others
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.names = _names(self.prompts)
        self.sizes = [len(names) for names in self.names]
        if not self.sizes:
            raise ValueError("no prompt to measure: give at least one sample")

    def verify(self) -> None:
        """Can this model's decoder be replayed at all? Asked once, before hours of measuring."""
        Replay(self.model, self.prompts[0], self.fidelity).verify()

    def curves(self, samples: int = CURVE_SAMPLES) -> list[SampleCurves]:
        """Spectra, attention balance and semantic maturity of every sample, by one forward each."""

        def measure(_batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            return [each.to_json() for each in sample_curves(self.model, inputs, self.fidelity)]

        return [SampleCurves.from_json(found) for found in self.each("curves", measure, samples)]

    def null(self, samples: int, seed: int) -> tuple[list[SampleSpectra], NDArray[np.float64]]:
        """Spectra, and KL of each layer [L] in nats, of the same architecture with fresh random weights."""
        random = fresh(self.model, seed)

        def measure(_batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            spectra = [each.to_json() for each in boundary_spectra(random, inputs, self.fidelity)]
            layer = redundancies(random, inputs, suffix=False).layer.tolist()
            return list(zip(spectra, layer, strict=True))

        found = self.each("random weights", measure, samples, key=f"random weights {seed}")
        spectra = [SampleSpectra.from_json(sample) for sample, _ in found]
        return spectra, np.mean([layer for _, layer in found], axis=0)

    def redundancies(
        self, samples: int = CURVE_SAMPLES
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """KL of each layer, KL of each suffix [n, L] in nats, and whether the next token survives the suffix."""

        def measure(_batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            found = redundancies(self.model, inputs)
            return list(zip(found.layer.tolist(), found.suffix.tolist(), found.same.tolist(), strict=True))

        samples_found = self.each("layer redundancy", measure, samples)
        layer, suffix, same = (np.array([each[part] for each in samples_found]) for part in range(3))
        return layer, suffix, same

    def replies(self) -> Replied:
        ids, visual, text = (list(part) for part in zip(*self.each_reply(), strict=True))
        batches = [Replies(ids[place : place + size]) for place, size in zip(self._places(), self.sizes, strict=True)]
        return Replied(batches, self._judge(ids), round(float(np.mean(visual))), round(float(np.mean(text))))

    def each_reply(self) -> list[tuple[list[int], int, int]]:
        """Of every sample: token ids of the untouched model's reply, and visual and text tokens of its prompt."""
        family = family_of(self.model)

        def measure(_batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            ids = inputs["input_ids"]
            visual = family.visual_positions(ids).sum(dim=1)
            mask = inputs.get("attention_mask")
            present = visual * 0 + ids.shape[1] if mask is None else mask.sum(dim=1)
            replies = greedy_replies(self.model, inputs).ids
            return list(zip(replies, visual.tolist(), (present - visual).tolist(), strict=True))

        return self.each("replies", measure)

    def trials(
        self,
        step: str,
        candidates: Sequence[C],
        replied: Replied,
        samples: int | None = None,
        start: int = 0,
    ) -> Trials[C]:
        """Run candidates on all samples, on the first so many (in whole batches), or on those behind ``start``."""
        plans = [candidate.plan(self.fidelity) for candidate in candidates]

        def measure(batch: Batch, inputs: Mapping[str, Any]) -> list[Any]:
            replies = Replies([replied.batches[batch.index].ids[row] for row in batch.rows])
            found = run_trials(self.model, inputs, replies, plans)
            return list(zip(found.same.int().T.tolist(), found.kl.T.tolist(), strict=True))

        asked = hashlib.sha256(repr(candidates).encode()).hexdigest()[:12]  # another goal tries other plans
        outcomes = self.each(step, measure, samples, start, key=f"{step} {asked}")
        same = np.array([unchanged for unchanged, _ in outcomes]).T.astype(bool)
        kl = np.array([divergence for _, divergence in outcomes]).T
        config = self.model.config
        flops = np.array([each.flops(config, replied.visual, replied.text) for each in candidates])
        return Trials(tuple(candidates), flops, replied.lost(same, self.first(start)), same, kl)

    def tasks(self, start: int = 0) -> list[str]:
        """What kind of question each sample asks, from `start` on; empty where that is not known."""
        if not isinstance(self.prompts, Prompts):
            return []
        return [str(getattr(sample, "task", "")) for sample in self.prompts.samples[self.first(start) :]]

    def each(
        self,
        step: str,
        measure: Callable[[Batch, Mapping[str, Any]], list[Any]],
        samples: int | None = None,
        start: int = 0,
        key: str = "",
    ) -> list[Any]:
        """A measurement of every sample; those in the journal are not prepared again."""
        key, results = key or step, list[Any]()
        first, last = self.first(start), sum(self.sizes) if samples is None else min(samples, sum(self.sizes))
        self.progress(step, 0, last - first)
        for index, (place, names) in enumerate(zip(self._places(), self.names, strict=True)):
            if first <= place < last:
                keys = [f"{key}/{name}" for name in names]
                results += self.journal.recall_all(keys, partial(self._measure, measure, index))
                self.progress(step, min(len(results), last - first), last - first)
        return results

    def _measure(
        self, measure: Callable[[Batch, Mapping[str, Any]], list[Any]], index: int, rows: list[int]
    ) -> list[Any]:
        """Measure some samples of a batch, together."""
        if len(rows) == self.sizes[index] or not isinstance(self.prompts, Prompts):  # prepared batches are never split
            return measure(Batch(index, rows), self.prompts[index])
        place = self._places()[index]
        return measure(Batch(index, rows), self.prompts.of([self.prompts.samples[place + row] for row in rows]))

    def _places(self) -> list[int]:
        """Number of each batch's first sample."""
        return [0, *accumulate(self.sizes)][:-1]

    def first(self, start: int) -> int:
        """Number of the first sample that no batch shares with the first ``start``."""
        return min((place for place in self._places() if place >= start), default=sum(self.sizes))

    def _judge(self, replies: list[list[int]]) -> list[bool | None]:
        if not isinstance(self.prompts, Prompts):
            return [None] * len(replies)
        judged: list[bool | None] = []
        for sample, ids in zip(self.prompts.samples, replies, strict=True):
            text = self.prompts.processor.decode(ids, skip_special_tokens=True)
            judged.append(None if sample.answer is None else is_right(text, sample.answer))
        return judged


def _names(prompts: Sequence[Mapping[str, Any]] | Prompts) -> list[list[str]]:
    """What tells each sample from others: its own fingerprint, its place where it has none, or its prepared batch."""
    if not isinstance(prompts, Prompts):
        return [[f"{_digest(inputs)} {row}" for row in range(len(inputs["input_ids"]))] for inputs in prompts]
    names = [str(getattr(each, "fingerprint", f"place {place}")) for place, each in enumerate(prompts.samples)]
    return [names[start : start + prompts.rows] for start in range(0, len(names), prompts.rows)]


def _digest(inputs: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        digest.update(repr((name, getattr(value, "shape", value))).encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
