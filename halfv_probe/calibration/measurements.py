"""What a calibration measures, batch by batch, each result written down as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from halfv_accel.adapters import family_of
from halfv_accel.answers import is_right
from halfv_accel.plan import Fidelity
from halfv_probe.calibration.journal import Journal
from halfv_probe.measures.curves import SampleCurves, sample_curves
from halfv_probe.measures.lifecycle import SampleSpectra, boundary_spectra
from halfv_probe.measures.null import fresh
from halfv_probe.measures.redundancy import layer_redundancy, redundancies
from halfv_probe.measures.replay import Replay
from halfv_probe.trials.outcomes import C, Replied, Trials
from halfv_probe.trials.prompts import Prompts
from halfv_probe.trials.replies import Replies, greedy_replies
from halfv_probe.trials.walk import run_trials

Progress = Callable[[str, int, int], None]
CURVE_SAMPLES = 100  # curves are means and settle early (the paper's own number); promises may need more samples
FIRST_LOOK = 32  # samples on which all plans of the grid are run


@dataclass
class Measurements:
    """One model on one set of prompts; every batch's result is remembered in the journal."""

    model: PreTrainedModel
    prompts: Sequence[Mapping[str, Any]] | Prompts
    fidelity: Fidelity
    journal: Journal
    progress: Progress
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.prompts, Prompts):
            rows, total = self.prompts.rows, len(self.prompts.samples)
            self.sizes = [min(rows, total - start) for start in range(0, total, rows)]
        else:
            self.sizes = [len(inputs["input_ids"]) for inputs in self.prompts]
        if not self.sizes:
            raise ValueError("no prompt to measure: give at least one sample")

    def verify(self) -> None:
        """Can this model's decoder be replayed at all? Asked once, before hours of measuring."""
        Replay(self.model, self.prompts[0], self.fidelity).verify()

    def curves(self, samples: int = CURVE_SAMPLES) -> list[SampleCurves]:
        """Spectra, attention balance and semantic maturity of every sample, by one forward each."""

        def measure(_index: int, inputs: Mapping[str, Any]) -> list[Any]:
            return [each.to_json() for each in sample_curves(self.model, inputs, self.fidelity)]

        found = self._each("curves", measure, samples)
        return [SampleCurves.from_json(sample) for batch in found for sample in batch]

    def null(self, samples: int, seed: int) -> tuple[list[SampleSpectra], NDArray[np.float64]]:
        """Spectra, and KL of each layer [L] in nats, of the same architecture with fresh random weights."""
        random = fresh(self.model, seed)

        def measure(_index: int, inputs: Mapping[str, Any]) -> list[Any]:
            spectra = [each.to_json() for each in boundary_spectra(random, inputs, self.fidelity)]
            return [spectra, layer_redundancy(random, inputs).tolist()]

        batches = self._each("random weights", measure, samples, key=f"random weights {seed}")
        spectra = [SampleSpectra.from_json(sample) for batch in batches for sample in batch[0]]
        sizes = [len(batch[0]) for batch in batches]
        return spectra, np.average([batch[1] for batch in batches], axis=0, weights=sizes)

    def redundancies(
        self, samples: int = CURVE_SAMPLES
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """KL of each layer, KL of each suffix [n, L] in nats, and whether the next token survives the suffix."""

        def measure(_index: int, inputs: Mapping[str, Any]) -> list[Any]:
            found = redundancies(self.model, inputs)
            return [found.layer.tolist(), found.suffix.tolist(), found.same.tolist()]

        batches = self._each("layer redundancy", measure, samples)
        layer, suffix, same = (np.concatenate([batch[part] for batch in batches]) for part in range(3))
        return layer, suffix, same

    def replies(self) -> Replied:
        family = family_of(self.model)

        def measure(_index: int, inputs: Mapping[str, Any]) -> list[Any]:
            ids = inputs["input_ids"]
            visual = family.visual_positions(ids).sum(dim=1)
            mask = inputs.get("attention_mask")
            present = visual * 0 + ids.shape[1] if mask is None else mask.sum(dim=1)
            return [greedy_replies(self.model, inputs).ids, visual.tolist(), (present - visual).tolist()]

        batches = self._each("replies", measure)
        visual = round(float(np.mean([count for batch in batches for count in batch[1]])))
        text = round(float(np.mean([count for batch in batches for count in batch[2]])))
        replies = [Replies(batch[0]) for batch in batches]
        return Replied(replies, self._judge([ids for batch in replies for ids in batch.ids]), visual, text)

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

        def measure(index: int, inputs: Mapping[str, Any]) -> list[Any]:
            found = run_trials(self.model, inputs, replied.batches[index], plans)
            return [found.same.int().tolist(), found.kl.tolist()]

        asked = hashlib.sha256(repr(candidates).encode()).hexdigest()[:12]  # another goal tries other plans
        batches = self._each(step, measure, samples, start, key=f"{step} {asked}")
        same = np.concatenate([batch[0] for batch in batches], axis=1).astype(bool)
        kl = np.concatenate([batch[1] for batch in batches], axis=1)
        config = self.model.config
        flops = np.array([each.flops(config, replied.visual, replied.text) for each in candidates])
        return Trials(tuple(candidates), flops, replied.lost(same, self.first(start)), same, kl)

    def tasks(self, start: int = 0) -> list[str]:
        """What kind of question each sample asks, from `start` on; empty where that is not known."""
        if not isinstance(self.prompts, Prompts):
            return []
        return [str(getattr(sample, "task", "")) for sample in self.prompts.samples[self.first(start) :]]

    def _each(
        self,
        step: str,
        measure: Callable[[int, Mapping[str, Any]], Any],
        samples: int | None = None,
        start: int = 0,
        key: str = "",
    ) -> list[Any]:
        """A measurement of every batch; those in the journal are not prepared again."""
        key, results, done = key or step, [], 0
        first, last = self.first(start), sum(self.sizes) if samples is None else min(samples, sum(self.sizes))
        self.progress(step, 0, last - first)
        for index, (place, size) in enumerate(zip(self._places(), self.sizes, strict=True)):
            if first <= place < last:
                results.append(self.journal.recall(f"{key}/{index}", lambda i=index: measure(i, self.prompts[i])))  # type: ignore[misc]
                done += size
                self.progress(step, min(done, last - first), last - first)
        return results

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
