"""What was measured, sample by sample, and the stages that follow from all of it or from some.

Whether a choice holds is asked by asking again: with other samples, another number of eigenvalues, other thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from halfv_accel.evidence import NullModel, Spread
from halfv_accel.plan import Fidelity
from halfv_probe.choice.stages import LIMITS, Stages, detect_stages
from halfv_probe.choice.witnesses import Limits
from halfv_probe.measures.curves import SampleCurves
from halfv_probe.measures.lifecycle import GROUPS, Group, Lifecycle, lifecycle_of

KS = (2, 4, 8, 16, 32, 64)  # numbers of eigenvalues at which the curves are kept; the paper shows 2 to 16


@dataclass(frozen=True)
class Findings:
    """Curves of n samples: ``layer_kl`` and ``suffix_kl`` are float64 [n, L] in nats; ``null`` is the yardstick."""

    curves: Sequence[SampleCurves]
    layer_kl: NDArray[np.float64]
    suffix_kl: NDArray[np.float64]
    k: int
    null: NullModel | None = None

    def of(self, samples: NDArray[np.intp]) -> Findings:
        """Some of the samples."""
        chosen = [self.curves[number] for number in samples]
        return replace(self, curves=chosen, layer_kl=self.layer_kl[samples], suffix_kl=self.suffix_kl[samples])

    def entropy(self, group: Group, k: int | None = None) -> NDArray[np.float64]:
        """Truncated matrix entropy of each sample: float64 [n, L + 1] in nats."""
        heads = np.array([each.spectra.values[group][:, : k or self.k] for each in self.curves])
        shares = heads / heads.sum(axis=-1, keepdims=True)
        return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=-1)

    def attention(self) -> NDArray[np.float64] | None:
        """Share of the text's attention that goes to visual tokens, mean over samples: [L]; None if not measured."""
        measured = [each.attention for each in self.curves if each.attention]
        return np.mean(measured, axis=0) if measured else None

    def maturity(self) -> NDArray[np.float64]:
        """By boundary, the share of samples whose next token is final from there on: [L + 1]."""
        decided = np.array([each.decided for each in self.curves])
        return (decided[:, None] <= np.arange(self.layer_kl.shape[1] + 1)).mean(axis=0)

    def stages(self, k: int | None = None, limits: Limits = LIMITS) -> Stages:
        """The stages by these samples."""
        visual = self.entropy("visual", k)
        return detect_stages(
            visual.mean(axis=0),
            self.layer_kl.mean(axis=0),
            text_entropy=self.entropy("text", k).mean(axis=0),
            attention_to_visual=self.attention(),
            suffix_redundancy=self.suffix_kl.mean(axis=0),
            maturity=self.maturity(),
            samples=visual if len(visual) > 1 else None,
            null=self.null,
            limits=limits,
        )

    def by_k(self) -> dict[str, dict[Group, Spread]]:
        """Means and spreads of all entropies, for the profile."""
        found: dict[str, dict[Group, Spread]] = {}
        for k in KS:
            each = {group: self.entropy(group, k) for group in GROUPS}
            found[str(k)] = {
                group: Spread(mean=values.mean(axis=0).tolist(), std=values.std(axis=0).tolist())
                for group, values in each.items()
            }
        return found


def findings_of(
    curves: Sequence[SampleCurves],
    layer_kl: NDArray[np.float64],
    suffix_kl: NDArray[np.float64],
    fidelity: Fidelity,
    k: int | float | str,
) -> tuple[Findings, Lifecycle]:
    """Findings with the number of eigenvalues settled, and the lifecycle that settled it."""
    lifecycle = lifecycle_of([each.spectra for each in curves], fidelity, k)
    return Findings(curves, layer_kl, suffix_kl, lifecycle.k), lifecycle
