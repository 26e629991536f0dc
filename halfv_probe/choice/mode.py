"""Which way of saturation: asked of the second stage alone, at the same layers and on the same samples.

With the paper's ratios in full plans, mode and ratio come together ("50 %, then freeze" against "25 %, then 5 %"), and
the comparison says nothing about the mode. So nothing is pruned before: from a layer near the onset of Stage III on,
all visual tokens are frozen, or 5 % of them kept, or, as a yardstick, all withdrawn (Table 2). The mode that loses
fewer answers on these layers wins, if chance does not explain the difference; else KL's verdict stands. Where even the
better one saves less than half of what withdrawing everything loses, saturation shows in neither way, and the mode is
``none``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfv_accel.plan import SSRMode
from halfv_probe.trials.candidates import Alone
from halfv_probe.trials.outcomes import Trials

CERTAIN = 1.96  # standard errors
HARDLY_BETTER = 0.5  # of what withdrawing all visual tokens loses


@dataclass(frozen=True)
class ModeVerdict:
    """What trials of the second stage alone say.

    ``mode`` is None where they do not tell freeze from sparse; ``lost`` is the share of answers lost by each mode,
    mean over the layers; ``says`` one sentence.
    """

    mode: SSRMode | None
    lost: dict[str, float]
    says: str


def mode_by_trials(alone: Trials[Alone], layers: Iterable[int]) -> ModeVerdict:
    """Compare the modes of the second stage at some layers, e.g. `Stages.near_saturation`.

    Parameters
    ----------
    alone : Trials
        Outcomes of `Alone` candidates; of ``sparse`` the scorer that loses less is taken.
    layers : iterable of int
        Those at which freeze and sparse were both run count.
    """
    wanted = set(layers)
    profiles = {mode: _lost(alone, mode, wanted) for mode in ("freeze", "sparse", "withdraw")}
    freeze, sparse, withdraw = (profiles[mode] for mode in ("freeze", "sparse", "withdraw"))
    lost = {mode: float(each.mean()) for mode, each in profiles.items() if each is not None}
    if freeze is None or sparse is None:
        return ModeVerdict(None, lost, "freeze and sparse were not run at the same layers")
    better: SSRMode = "freeze" if lost["freeze"] < lost["sparse"] else "sparse"
    other = "sparse" if better == "freeze" else "freeze"
    says = f"{better} loses {lost[better]:.1%} where {other} loses {lost[other]:.1%}"
    best = freeze if better == "freeze" else sparse
    if withdraw is not None:
        says += f" and no visual tokens {lost['withdraw']:.1%}"
        if surely_positive(best - HARDLY_BETTER * withdraw):
            return ModeVerdict("none", lost, f"{says}: neither keeps the answers")
    if not surely_positive(sparse - freeze if better == "freeze" else freeze - sparse):
        return ModeVerdict(None, lost, f"{says}: not told apart")
    return ModeVerdict(better, lost, says)


def surely_positive(differences: NDArray[np.float64]) -> bool:
    """Is the mean of these paired differences above 0 by more than chance explains?"""
    values = np.atleast_1d(np.asarray(differences, dtype=np.float64))
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
    return bool(values.mean() > CERTAIN * error and values.mean() > 0)


def _lost(alone: Trials[Alone], mode: str, layers: set[int]) -> NDArray[np.float64] | None:
    """Share of the layers at which each sample's answer is lost, [n]; of several scorers the one that loses less."""
    found: dict[str, list[int]] = {}
    for number, each in enumerate(alone.candidates):
        if each.mode == mode and each.layer in layers:
            found.setdefault(each.scored_by, []).append(number)
    profiles = [alone.lost[numbers].mean(axis=0) for numbers in found.values()]
    return min(profiles, key=lambda profile: float(profile.mean()), default=None)
