"""What the untouched model replied, and what candidate plans did to those replies, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from halfv_probe.trials.candidates import Alone, Candidate
from halfv_probe.trials.replies import Replies

C = TypeVar("C", Candidate, Alone)
LABELS_COUNT_FROM = 0.5  # a model that answers fewer right is judged by agreement: its answers are not the labels' kind


@dataclass(frozen=True)
class Replied:
    """Greedy replies of the untouched model, batch by batch, and which are right (None: no answer is known).

    ``visual`` and ``text`` are tokens a prompt, mean over samples, rounded.
    """

    batches: list[Replies]
    right: list[bool | None]
    visual: int
    text: int

    @property
    def accuracy(self) -> float | None:
        """Share of the known answers that the untouched model gives."""
        known = [right for right in self.right if right is not None]
        return sum(known) / len(known) if known else None

    def lost(self, same: NDArray[np.bool_], start: int = 0) -> NDArray[np.bool_]:
        """Which answers are lost, [P, n], of the samples from ``start`` on.

        Right ones that change; without labels to trust, any reply that changes.
        """
        if self.accuracy is None or self.accuracy < LABELS_COUNT_FROM:
            return ~same
        right = self.right[start : start + same.shape[1]]
        return ~same & np.array([each is not False for each in right])


@dataclass(frozen=True)
class Trials(Generic[C]):
    """What candidates did to each sample.

    ``flops`` is float64 [P] (share of untouched), ``lost`` bool [P, n] (was a right answer lost? where no answers are
    known: was the reply changed?), ``same`` bool [P, n] (is the whole reply unchanged?), ``kl`` float64 [P, n] nats.
    """

    candidates: tuple[C, ...]
    flops: NDArray[np.float64]
    lost: NDArray[np.bool_]
    same: NDArray[np.bool_]
    kl: NDArray[np.float64]

    def of(self, samples: NDArray[np.intp]) -> Trials[C]:
        """On some samples, which may come several times."""
        return replace(self, lost=self.lost[:, samples], same=self.same[:, samples], kl=self.kl[:, samples])

    def where(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> Trials[C]:
        """Some of the candidates."""
        numbers = np.arange(len(self.candidates))[kept]
        chosen = tuple(self.candidates[number] for number in numbers)
        return Trials(chosen, self.flops[numbers], self.lost[numbers], self.same[numbers], self.kl[numbers])

    @property
    def drop(self) -> NDArray[np.float64]:
        """Share of samples lost: [P]."""
        return self.lost.mean(axis=1)

    def joined(self, other: Trials[C]) -> Trials[C]:
        """These candidates, and those of others that are not among them, on the same samples."""
        new = [number for number, each in enumerate(other.candidates) if each not in self.candidates]
        more = other.where(np.array(new, dtype=np.intp))
        flops, lost, same, kl = (
            np.concatenate([getattr(self, name), getattr(more, name)]) for name in ("flops", "lost", "same", "kl")
        )
        return Trials(self.candidates + more.candidates, flops, lost, same, kl)

    def results(self, index: int) -> dict[str, Any]:
        """What one candidate did, as fields of the profile's documents."""
        return {
            "flops": float(self.flops[index]),
            "agreement": float(self.same[index].mean()),
            "drop": float(self.lost[index].mean()),
            "kl": float(self.kl[index].mean()),
            "samples": self.lost.shape[1],
        }
