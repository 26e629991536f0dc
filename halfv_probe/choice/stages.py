"""The three stages of a model, read from two curves (HalfV, Section 3.2 and Figure 2).

Visual entropy first stays high (I, alignment), then falls (II, aggregation), then has reached its valley and is flat or
rises again (III, saturation). The first turn is where inherited redundancy is pruned, L_IVR; the second, L_SSR, is
where saturation begins. A continuous curve of three straight pieces, of which the first is level, is fitted at every
pair of turns; the pair with the smallest squared error wins. In some models alignment first lifts entropy to its
plateau: a rise to the peak of the first third is taken out before the fit.

How saturation shows is read from the layer redundancy (Appendix F): where terminating the visual updates of a single
deep layer hardly moves the next-token distribution, the layers are inactive and visual tokens can be frozen; where it
does move it, only few tokens matter and the others can be dropped.

A curve without these stages (random weights have none) is not dressed up: the fit must explain most of the curve's
variance, and the fall must stand out from what it leaves over. A fall of less than 0.3 nats could be drift; it counts
only from 0.1 nats on, and only if some layer before the valley is seen to matter, with a redundancy of at least 0.01
nats. Otherwise ``stable`` is False and the choice is a cautious one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from halfv_accel.errors import HalfVError

# LLaVA's deep layers lie near 5e-5 nats, Qwen's two to three orders higher (Figure 2d, Appendix J.1).
INACTIVE_KL = 1e-3
MIN_EXPLAINED = 0.6  # share of the variance that the three pieces must explain
MIN_FALL_TO_NOISE = 4.0  # fall over residual standard deviation
# Nats. Random weights of the embedded models drift down by up to 0.16, and their largest layer KL is 5e-3.
CLEAR_FALL = 0.3
SMALL_FALL = 0.1
ACTIVE_KL = 1e-2


@dataclass(frozen=True)
class Stages:
    """Where the stages begin and why.

    ``ivr_layer`` and ``ssr_layer`` are decoder layers (0-based; a stage acts on a layer's input), ``fall`` is the depth
    of the valley below the plateau in nats, ``explained`` the share of variance that the fit explains, ``reasons`` one
    sentence for each choice.
    """

    ivr_layer: int
    ssr_layer: int
    ssr_mode: Literal["sparse", "freeze", "none"]
    stable: bool
    fall: float
    explained: float
    reasons: dict[str, str] = field(default_factory=dict)


def detect_stages(
    visual_entropy: ArrayLike, layer_redundancy: ArrayLike | None = None, inactive_kl: float = INACTIVE_KL
) -> Stages:
    """Find both stage boundaries and the way in which saturation shows.

    Parameters
    ----------
    visual_entropy : (L + 1,) array-like
        Truncated matrix entropy of the visual tokens in nats; entry l is the input of layer l, the last one the output.
    layer_redundancy : (L,) array-like, optional
        KL in nats when the visual updates of one layer are terminated. Without it the mode is ``sparse``.
    inactive_kl : float
        Nats; deep layers whose mean KL is below are called inactive.

    Returns
    -------
    Stages

    Raises
    ------
    HalfVError
        If the model has fewer than four layers, the lengths do not fit, or a value is not finite.
    """
    entropy = np.asarray(visual_entropy, dtype=np.float64)
    layers = len(entropy) - 1
    if entropy.ndim != 1 or layers < 4 or not np.isfinite(entropy).all():
        raise HalfVError(f"visual_entropy needs at least 5 finite values (layers + 1), got shape {entropy.shape}")
    kl = None if layer_redundancy is None else np.asarray(layer_redundancy, dtype=np.float64)
    if kl is not None and (kl.shape != (layers,) or not np.isfinite(kl).all()):
        raise HalfVError(f"layer_redundancy needs {layers} finite values, one per layer, got shape {kl.shape}")

    levelled = _levelled(entropy)
    on_plateau = levelled - entropy < SMALL_FALL  # not on the way up
    onset, valley, fall, residual = _best_turns(levelled, np.flatnonzero(on_plateau))
    explained = float(1 - residual.var() / max(levelled.var(), 1e-300))
    noise = float(residual.std())
    matters = kl is not None and kl[:valley].max() >= ACTIVE_KL
    least = SMALL_FALL if matters else CLEAR_FALL
    if fall < max(least, MIN_FALL_TO_NOISE * noise) or explained < MIN_EXPLAINED:
        return _fallback(layers, fall, explained)

    ivr, ssr = max(1, onset), max(2, min(valley, layers - 1))
    reasons = {
        "ivr": f"entropy stays high up to layer {onset} and falls by {fall:.2f} nats behind it",
        "ssr": f"entropy reaches its valley at layer {valley}",
    }
    mode, reasons["mode"] = _mode(kl, ssr, inactive_kl)
    return Stages(ivr, max(ssr, ivr + 1), mode, True, fall, explained, reasons)


def _levelled(entropy: np.ndarray) -> np.ndarray:
    """The curve with its rise to the peak of the first third taken out: alignment may lift entropy on its way up."""
    peak = int(np.argmax(entropy[: (len(entropy) - 1) // 3 + 1]))
    return np.concatenate([np.full(peak, entropy[peak]), entropy[peak:]])


def _best_turns(entropy: np.ndarray, onsets: np.ndarray) -> tuple[int, int, float, np.ndarray]:
    """Onset a (one of ``onsets``), valley b, the fall between them (nats) and the residuals of the best such curve."""
    x = np.arange(len(entropy), dtype=np.float64)
    best: tuple[float, int, int, float, np.ndarray] | None = None
    for a in onsets[onsets < len(x) - 3]:
        for b in range(a + 2, len(x) - 1):
            pieces = np.stack([np.ones_like(x), np.clip(x - a, 0, b - a), np.clip(x - b, 0, None)], axis=1)
            _, slope_ii, slope_iii = weights = np.linalg.lstsq(pieces, entropy, rcond=None)[0]
            residual = entropy - pieces @ weights
            error = float(residual @ residual)
            # The middle piece must fall, and the last one must not fall as fast: else b is no valley.
            if slope_ii < 0 and slope_iii > 0.5 * slope_ii and (best is None or error < best[0]):
                best = (error, int(a), b, -slope_ii * (b - a), residual)
    if best is None:
        return 0, len(x) - 1, 0.0, entropy - entropy.mean()
    _, onset, valley, fall, residual = best
    return onset, valley, float(fall), residual


def _mode(kl: np.ndarray | None, ssr: int, inactive_kl: float) -> tuple[Literal["sparse", "freeze"], str]:
    if kl is None:
        return "sparse", "layer redundancy was not measured, so no layer is taken to be inactive"
    # Nothing reads what the last layer does to visual tokens, so its KL is 0 in every model and says nothing.
    first = min(ssr, len(kl) - 2)
    deep = float(kl[first:-1].mean())
    cost = f"terminating a layer from {first} on costs {deep:.1e} nats on average"
    if deep < inactive_kl:
        return "freeze", f"{cost}: the layers are inactive"
    return "sparse", f"{cost}: the layers are active"


def _fallback(layers: int, fall: float, explained: float) -> Stages:
    """Half the layers untouched, then prune once, and no second stage."""
    layer = layers // 2
    why = f"no three stages found (fall {fall:.2f} nats, {max(explained, 0):.0%} of the curve explained)"
    reasons = {"ivr": f"{why}: cautious choice at half depth", "ssr": why, "mode": why}
    return Stages(layer, layers - 1, "none", False, fall, explained, reasons)
