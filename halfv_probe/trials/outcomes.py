"""What the untouched model replied, and what candidate plans did to those replies, sample by sample."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from halfv_accel.evidence import Trial
from halfv_probe.trials.candidates import Candidate
from halfv_probe.trials.replies import Replies

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
class Trials:
    """What candidates did to each sample.

    ``flops`` is float64 [P] (share of untouched), ``lost`` bool [P, n] (was a right answer lost? where no answers are
    known: was the reply changed?), ``same`` bool [P, n] (is the whole reply unchanged?), ``kl`` float64 [P, n] nats.
    """

    candidates: tuple[Candidate, ...]
    flops: NDArray[np.float64]
    lost: NDArray[np.bool_]
    same: NDArray[np.bool_]
    kl: NDArray[np.float64]

    def of(self, samples: NDArray[np.intp]) -> Trials:
        """On some samples, which may come several times."""
        return replace(self, lost=self.lost[:, samples], same=self.same[:, samples], kl=self.kl[:, samples])

    def where(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> Trials:
        """Some of the candidates."""
        numbers = np.arange(len(self.candidates))[kept]
        chosen = tuple(self.candidates[number] for number in numbers)
        return Trials(chosen, self.flops[numbers], self.lost[numbers], self.same[numbers], self.kl[numbers])

    @property
    def drop(self) -> NDArray[np.float64]:
        """Share of samples lost: [P]."""
        return self.lost.mean(axis=1)

    def trial(self, index: int) -> Trial:
        """One candidate's results for the profile."""
        return Trial(
            **asdict(self.candidates[index]),
            flops=float(self.flops[index]),
            agreement=float(self.same[index].mean()),
            drop=float(self.lost[index].mean()),
            kl=float(self.kl[index].mean()),
            samples=self.lost.shape[1],
        )
