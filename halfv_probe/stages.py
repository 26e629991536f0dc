"""The three stages of a model, read from two curves (HalfV, Section 3.2 and Figure 2).

Visual entropy first stays high (I, alignment), then falls (II, aggregation), then has reached its valley and is flat or
rises again (III, saturation). The first turn is where inherited redundancy is pruned, L_IVR; the second, L_SSR, is
where saturation begins. A continuous curve of three straight pieces, of which the first may rise but not fall, is
fitted at every pair of turns; the pair with the smallest squared error wins.

How saturation shows is read from the layer redundancy (Appendix F): where terminating the visual updates of a single
deep layer hardly moves the next-token distribution, the layers are inactive and visual tokens can be frozen; where it
does move it, only few tokens matter and the others can be dropped.

A curve without these stages (random weights have none) is not dressed up: the fall must explain most of the curve's
variance, measure at least 0.2 nats, and stand out from what the fit leaves over. Otherwise ``stable`` is False and the
choice is a cautious one.
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
MIN_FALL = 0.2  # nats, a fifth of the effective directions; random weights of the embedded models drift by up to 0.16


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

    onset, valley, fall, residual = _best_turns(entropy)
    explained = float(1 - residual.var() / max(entropy.var(), 1e-300))
    noise = float(residual.std())
    if fall < max(MIN_FALL, MIN_FALL_TO_NOISE * noise) or explained < MIN_EXPLAINED:
        return _fallback(layers, fall, explained)

    ivr, ssr = max(1, onset), max(2, min(valley, layers - 1))
    reasons = {
        "ivr": f"entropy stays high up to layer {onset} and falls by {fall:.2f} nats behind it",
        "ssr": f"entropy reaches its valley at layer {valley}",
    }
    mode, reasons["mode"] = _mode(kl, ssr, inactive_kl)
    return Stages(ivr, max(ssr, ivr + 1), mode, True, fall, explained, reasons)


def _best_turns(entropy: np.ndarray) -> tuple[int, int, float, np.ndarray]:
    """Onset a, valley b, fall between them (nats) and residuals of the least-squares curve with its turns there."""
    x = np.arange(len(entropy), dtype=np.float64)
    best: tuple[float, int, int, float, np.ndarray] | None = None
    for a in range(len(x) - 3):
        for b in range(a + 2, len(x) - 1):
            pieces = np.stack(
                [np.clip(x - a, None, 0), x**0, np.clip(x - a, 0, b - a), np.clip(x - b, 0, None)], axis=1
            )
            slope_i, _, slope_ii, slope_iii = weights = np.linalg.lstsq(pieces, entropy, rcond=None)[0]
            if slope_i < 0:  # alignment does not lower entropy: level instead
                level = np.linalg.lstsq(pieces[:, 1:], entropy, rcond=None)[0]
                slope_i, _, slope_ii, slope_iii = weights = np.array([0.0, *level])
            residual = entropy - pieces @ weights
            error = float(residual @ residual)
            # The middle piece must fall, and the last one must not fall as fast: else b is no valley.
            if slope_ii < 0 and slope_iii > 0.5 * slope_ii and (best is None or error < best[0]):
                best = (error, a, b, -slope_ii * (b - a), residual)
    if best is None:
        return 0, len(x) - 1, 0.0, entropy - entropy.mean()
    return best[1:]


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
