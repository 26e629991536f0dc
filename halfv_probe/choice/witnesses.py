"""What single curves say about where Stage II and Stage III begin (HalfV, Section 3.2).

Stage I ends when text and picture are aligned, and four curves see that: visual entropy leaves its plateau, text
entropy has collapsed (Figure 2b), attention has turned from the picture to the text (Figure 3), and terminating the
visual updates of a layer no longer does many times the harm of all later ones (Figure 2d, Qwen). Stage III begins
where visual entropy has its valley, where freezing all that is deeper costs next to nothing, where the next token is
decided, and where visual tokens give nothing more to the text.

No rule has a unit: falls are compared with the curve's own range, KL with the curve's own peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfv_accel.errors import HalfVError
from halfv_accel.evidence import Witness

Curve = NDArray[np.float64]
Name = Literal["visual entropy", "text entropy", "attention", "layer KL", "suffix KL", "maturity", "flow"]


@dataclass(frozen=True)
class Limits:
    """All thresholds of the detection; none has a unit.

    Parameters
    ----------
    explained : float
        Share of the curve's variance that the fit must explain.
    fall_to_noise : float
        Fall of visual entropy / what the fit leaves over (standard deviation), and / its standard error over samples.
    contrast : float
        Largest layer KL of the first half / geometric mean of the second. It is 550 and 2,100 for the published curves,
        220, 2,600 and 6,000 for the embedded models, and 6 to 28 for 20 models with random weights.
    over_null : float
        The same / the null model's, where one was measured.
    inactive : float
        KL of deep layers / KL of Stage II (geometric means), below which the deep layers are inactive. 0.009 for the
        published LLaVA-1.5, 0.5 for Qwen2.5-VL.
    collapsed : float
        Share of a fall that may be left where a curve has collapsed, and of the KL's peak where it has.
    harmless : float
        Suffix KL / its largest value, below which freezing is harmless.
    decided : float
        Share of samples whose next token is final, from which on the layers behind add nothing.
    """

    explained: float = 0.6
    fall_to_noise: float = 4.0
    contrast: float = 100.0
    over_null: float = 10.0
    inactive: float = 0.1
    collapsed: float = 0.1
    harmless: float = 0.01
    decided: float = 0.9


def end_of_alignment(curve: ArrayLike, name: Name, limits: Limits) -> Witness:
    """The layer by which a curve that starts high has collapsed: text entropy, or attention to visual tokens.

    Only a collapse within the first third of the depth is alignment; a later one, or none, names no layer.
    """
    values = np.asarray(curve, dtype=np.float64)
    depth = len(values)
    third, half = max(1, depth // 3), max(2, depth // 2 + 1)
    peak = int(np.argmax(values[:third]))
    high, low = values[peak], values[peak:half].min()
    if high - low <= 0.5 * np.ptp(values[:half]) or high == low:
        return Witness(curve=name, says="does not fall at the beginning")
    layer = peak + int(np.flatnonzero(values[peak:half] <= low + limits.collapsed * (high - low))[0])
    if layer > third:
        return Witness(curve=name, says=f"falls slowly, until layer {layer}: no end of alignment")
    left = f"from {_short(high)} to {_short(values[layer])}"
    return Witness(curve=name, layer=max(1, layer), says=f"has collapsed at layer {layer}, {left}")


def end_of_heavy_layers(layer_kl: ArrayLike, limits: Limits) -> Witness:
    """The layer from which on no layer's KL comes near the peak of the first ones."""
    kl = np.asarray(layer_kl, dtype=np.float64)
    third = max(1, len(kl) // 3)
    peak = float(kl[:third].max())
    heavy = np.flatnonzero(kl > limits.collapsed * peak)
    layer = int(heavy[-1]) + 1 if len(heavy) else 0
    if peak <= 0 or layer > third:
        return Witness(curve="layer KL", says="does not fall by orders of magnitude in the first third")
    behind = float(kl[layer:].max(initial=0))
    return Witness(
        curve="layer KL",
        layer=max(1, layer),
        says=f"falls from {_short(peak)} to at most {_short(behind)} nats from layer {layer} on",
    )


def harmless_freeze(suffix_kl: ArrayLike, limits: Limits) -> Witness:
    """The first layer from which on freezing costs next to nothing of what it costs at its worst."""
    kl = np.asarray(suffix_kl, dtype=np.float64)
    worst = float(kl.max())
    costly = np.flatnonzero(kl > limits.harmless * worst)
    layer = int(costly[-1]) + 1 if worst > 0 else len(kl)
    if layer >= len(kl) - 1:  # freezing the last layer alone is free in every model: nothing reads what it does
        return Witness(curve="suffix KL", says="freezing is nowhere harmless")
    says = f"freezing from layer {layer} on costs {_short(kl[layer])} nats, at worst it costs {_short(worst)}"
    return Witness(curve="suffix KL", layer=max(2, layer), says=says)


def token_decided(maturity: ArrayLike, limits: Limits) -> Witness:
    """The first boundary from which on nearly all samples name their final token (InfoPrune, Figure 15)."""
    shares = np.asarray(maturity, dtype=np.float64)
    decided = np.flatnonzero(shares >= limits.decided)
    layer = int(decided[0]) if len(decided) else len(shares) - 1
    if layer >= len(shares) - 2:
        return Witness(curve="maturity", says="the next token is decided by the last layers only")
    says = f"the next token of {shares[layer]:.0%} of the samples is final from layer {layer} on"
    return Witness(curve="maturity", layer=max(2, layer), says=says)


def flow_dried_up(flow: ArrayLike, limits: Limits) -> Witness:
    """The first layer from which on visual tokens give the text next to nothing (InfoPrune's S_vt)."""
    values = np.asarray(flow, dtype=np.float64)
    strong = np.flatnonzero(values > limits.collapsed * values.max())
    layer = int(strong[-1]) + 1 if values.max() > 0 else len(values)
    if layer >= len(values) - 1:
        return Witness(curve="flow", says="visual tokens inform the text to the end")
    return Witness(
        curve="flow", layer=max(2, layer), says=f"visual tokens hardly inform the text from layer {layer} on"
    )


def checked(name: str, curve: ArrayLike | None, length: int) -> Curve | None:
    """A measured curve as float64, or None where there is none.

    Raises
    ------
    HalfVError
        If it has another length, or a value that is not finite.
    """
    if curve is None:
        return None
    values = np.asarray(curve, dtype=np.float64)
    if values.shape != (length,) or not np.isfinite(values).all():
        raise HalfVError(f"{name} needs {length} finite values, got shape {values.shape}")
    return values


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3g}"
