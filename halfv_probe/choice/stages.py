"""The three stages of a model, read from its curves (HalfV, Section 3.2 and Figure 2).

Visual entropy first stays high (I, alignment), then falls (II, aggregation), then has reached its valley and is flat or
rises again (III, saturation). A continuous curve of three straight pieces, of which the first is level, is fitted at
every pair of turns; the pair with the smallest squared error wins. In some models alignment first lifts entropy to its
plateau: a rise to the peak of the first third is taken out before the fit. The last boundary has no part in it, because
nothing reads what the last layer makes of visual tokens.

The valley is where Stage III begins. Where Stage I ends is not for visual entropy alone to say (Qwen2.5-VL's stays high
until layer 10, and its alignment is over at 2): every curve that sees it names a layer (`witnesses`), and the middle
one is taken. Trials decide in the end; `Stages.ivr_tried` and `Stages.ssr_tried` say where.

How saturation shows is read from the layer redundancy (Appendix F): where the layers from the valley on do next to
nothing compared with those of Stage II, they are inactive and visual tokens can be frozen; where they do, only few
tokens matter and the others can be dropped.

Nothing here has a unit: a curve times a constant has the same stages. A curve without them (random weights have none)
is not dressed up. The fit must explain most of the curve's variance; the fall must stand out from what it leaves over
and from its spread over samples; and visual layers must matter far more in the first half than in the second, more
than ten times as much as in the same architecture with fresh random weights, where such a null model was measured.
Otherwise ``stable`` is False and the choice is a cautious one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median_low
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from halfv_accel.errors import HalfVError
from halfv_accel.evidence import NullModel, Witness
from halfv_probe.choice.witnesses import (
    Curve,
    Limits,
    checked,
    end_of_alignment,
    end_of_heavy_layers,
    flow_dried_up,
    harmless_freeze,
    token_decided,
)

LIMITS = Limits()
Mode = Literal["sparse", "freeze", "none"]


@dataclass(frozen=True)
class Stages:
    """Where the stages begin and why.

    ``ivr_layer`` and ``ssr_layer`` are decoder layers (0-based; a stage acts on a layer's input), ``ssr_mode`` is what
    KL says of the deep layers, ``fall`` is the depth of the valley below the plateau in the units of the curve,
    ``explained`` the share of variance that the fit explains, ``contrast`` the largest layer KL of the first half / the
    geometric mean of the second, ``reasons`` one sentence for each choice, ``witnesses`` what each curve says.
    """

    ivr_layer: int
    ssr_layer: int
    ssr_mode: Mode
    stable: bool
    fall: float
    explained: float
    depth: int
    contrast: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    witnesses: dict[Literal["ivr", "ssr"], tuple[Witness, ...]] = field(default_factory=dict)

    @property
    def ivr_tried(self) -> tuple[int, ...]:
        """Layers worth a trial as L_IVR: every layer that a witness names and its neighbours, and 1 and 2."""
        near = {layer + step for layer in self._named("ivr") for step in (-1, 0, 1)}
        return tuple(sorted(layer for layer in near | {1, 2} if 1 <= layer <= self.depth - 2))

    @property
    def ssr_tried(self) -> tuple[int, ...]:
        """Layers worth a trial as L_SSR: from an eighth of the depth before the first that a witness names on.

        Not the last layer: to freeze it does nothing, because nothing reads what it makes of visual tokens.
        """
        reach = max(2, self.depth // 8)
        first = min(self._named("ssr"), default=self.ssr_layer)
        return tuple(range(max(2, first - reach), self.depth - 1))

    @property
    def near_saturation(self) -> tuple[int, ...]:
        """Layers about the onset of Stage III, an eighth of the depth on either side, where its modes are compared."""
        reach = max(2, self.depth // 8)
        near = {layer + step for layer in self._named("ssr") for step in range(-reach, reach + 1)}
        return tuple(layer for layer in self.ssr_tried if layer in near) or self.ssr_tried

    def agree(self, choice: Literal["ivr", "ssr"]) -> bool:
        """Do all witnesses that name a layer name the same, give or take one?"""
        named = self._named(choice)
        return max(named, default=0) - min(named, default=0) <= 2

    def _named(self, choice: Literal["ivr", "ssr"]) -> list[int]:
        return [each.layer for each in self.witnesses.get(choice, ()) if each.layer is not None]


def detect_stages(
    visual_entropy: ArrayLike,
    layer_redundancy: ArrayLike | None = None,
    *,
    text_entropy: ArrayLike | None = None,
    attention_to_visual: ArrayLike | None = None,
    suffix_redundancy: ArrayLike | None = None,
    maturity: ArrayLike | None = None,
    flow: ArrayLike | None = None,
    samples: ArrayLike | None = None,
    null: NullModel | None = None,
    limits: Limits = LIMITS,
) -> Stages:
    """Find both stage boundaries and the way in which saturation shows.

    Parameters
    ----------
    visual_entropy : (L + 1,) array-like
        Truncated matrix entropy of the visual tokens, in nats or any other unit, z-scores included; entry l is the
        input of layer l, the last one the output.
    layer_redundancy : (L,) array-like, optional
        KL when the visual updates of one layer are terminated. Without it the mode is ``sparse``.
    text_entropy, attention_to_visual : (L + 1,) and (L,) array-like, optional
        Entropy of the text tokens, and the share of the text's attention that goes to visual tokens.
    suffix_redundancy : (L,) array-like, optional
        KL when the visual updates of a layer and all behind it are terminated.
    maturity : (L + 1,) array-like, optional
        Share of samples whose most likely next token is final from this boundary on.
    flow : (L,) array-like, optional
        Saliency flow from visual to text tokens (InfoPrune), where it was measured.
    samples : (n, L + 1) array-like, optional
        Visual entropy of each sample, whose spread the fall must exceed.
    null : NullModel, optional
        The same architecture with random weights, as the yardstick of what KL contrast means.
    limits : Limits
        Thresholds.

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
    kl = checked("layer_redundancy", layer_redundancy, layers)
    suffix = checked("suffix_redundancy", suffix_redundancy, layers)
    fit = _fit(entropy[:-1])
    ratio = contrast(kl)
    why_not = _unstable(fit, ratio, samples, null, limits)
    witnesses = _heard(
        fit,
        limits,
        text=_but_last(text_entropy, layers),
        attention=checked("attention_to_visual", attention_to_visual, layers),
        layer_kl=kl,
        suffix_kl=suffix,
        maturity=checked("maturity", maturity, layers + 1),
        flow=checked("flow", flow, layers),
    )
    if why_not:
        return _fallback(layers, fit, ratio, why_not, witnesses)
    ssr = max(2, min(fit.valley, layers - 1))
    named = [each.layer for each in witnesses["ivr"] if each.layer is not None and each.layer < ssr]
    ivr = min(median_low(named or [1]), ssr - 1)
    mode, says = mode_by_kl(kl, ivr, ssr, suffix, limits)
    reasons = {"ivr": _told(witnesses["ivr"]), "ssr": _told(witnesses["ssr"]), "mode": says}
    return Stages(ivr, ssr, mode, True, fit.fall, fit.explained, layers, ratio, reasons, witnesses)


def contrast(layer_kl: Curve | None) -> float | None:
    """Largest layer KL of the first half / geometric mean of the second, the last layer left out; None without a KL.

    Geometric, because a single deep layer that is active says nothing against stages (Qwen has such layers).
    """
    if layer_kl is None:
        return None
    half = len(layer_kl) // 2
    first, second = float(layer_kl[:half].max()), _typical(layer_kl[half:-1])
    return first / second if second > 0 else float("inf") if first > 0 else 0.0


def mode_by_kl(
    layer_kl: Curve | None, ivr: int, ssr: int, suffix_kl: Curve | None = None, limits: Limits = LIMITS
) -> tuple[Mode, str]:
    """``freeze`` where the layers of Stage III do next to nothing with visual tokens, else ``sparse``.

    Asked is what freezing costs, compared with what it costs at its worst, where the suffixes were measured; else what
    a deep layer is worth, compared with one of Stage II. Nothing reads what the last layer does to visual tokens, so
    its KL is 0 in every model and says nothing.
    """
    if layer_kl is None:
        return "sparse", "layer redundancy was not measured, so no layer is taken to be inactive"
    first = min(ssr, len(layer_kl) - 2)
    aggregating, deep = _typical(layer_kl[min(ivr, first - 1) : first]), _typical(layer_kl[first:-1])
    ratio = deep / aggregating if aggregating > 0 else 1.0
    says, inactive = f"a layer from {first} on is worth {ratio:.2g} of a layer of Stage II", ratio < limits.inactive
    if suffix_kl is not None and suffix_kl.max() > 0:
        share = float(suffix_kl[first] / suffix_kl.max())
        says, inactive = (
            f"freezing from {first} on costs {share:.2g} of what it costs at worst",
            share < limits.harmless,
        )
    return ("freeze", f"{says}: inactive") if inactive else ("sparse", f"{says}: active")


def _typical(kl: Curve) -> float:
    """Geometric mean; a layer that does nothing at all counts as a billionth of the largest."""
    largest = float(kl.max())
    return float(np.exp(np.log(np.maximum(kl, largest * 1e-9)).mean())) if largest > 0 else 0.0


@dataclass(frozen=True)
class _Fit:
    """The three pieces: where they meet, how far the middle one falls, what is left over (standard deviation)."""

    onset: int
    valley: int
    fall: float
    noise: float
    explained: float


def _fit(entropy: Curve) -> _Fit:
    levelled = _levelled(entropy)
    on_plateau = levelled - entropy <= 0.1 * np.ptp(levelled)  # not on the way up
    onset, valley, fall, residual = _best_turns(levelled, np.flatnonzero(on_plateau))
    spread = levelled.var()
    explained = float(1 - residual.var() / spread) if spread > 0 else 0.0
    return _Fit(onset, valley, fall, float(residual.std()), explained)


def _levelled(entropy: Curve) -> Curve:
    """The curve with its rise to the peak of the first third taken out: alignment may lift entropy on its way up."""
    peak = int(np.argmax(entropy[: len(entropy) // 3 + 1]))
    return np.concatenate([np.full(peak, entropy[peak]), entropy[peak:]])


def _best_turns(entropy: Curve, onsets: np.ndarray) -> tuple[int, int, float, Curve]:
    """Onset a (one of ``onsets``), valley b, the fall between them and the residuals of the best such curve."""
    x = np.arange(len(entropy), dtype=np.float64)
    best: tuple[float, int, int, float, Curve] | None = None
    for a in onsets[onsets < len(x) - 2]:
        for b in range(a + 2, len(x)):
            pieces = np.stack([np.ones_like(x), np.clip(x - a, 0, b - a), np.clip(x - b, 0, None)], axis=1)
            pieces = pieces[:, : 2 if b == len(x) - 1 else 3]
            weights = np.linalg.lstsq(pieces, entropy, rcond=None)[0]
            slope_ii, slope_iii = weights[1], weights[2] if len(weights) > 2 else 0.0
            residual = entropy - pieces @ weights
            error = float(residual @ residual)
            # The middle piece must fall, and the last one must not fall as fast: else b is no valley.
            if slope_ii < 0 and slope_iii > 0.5 * slope_ii and (best is None or error < best[0]):
                best = (error, int(a), b, -slope_ii * (b - a), residual)
    if best is None:
        return 0, len(x) - 1, 0.0, entropy - entropy.mean()
    _, onset, valley, fall, residual = best
    return onset, valley, float(fall), residual


def _unstable(fit: _Fit, ratio: float | None, samples: ArrayLike | None, null: NullModel | None, limits: Limits) -> str:
    """Why these are no three stages; empty where they are."""
    if fit.explained < limits.explained:
        return f"three pieces explain {max(fit.explained, 0):.0%} of the visual entropy"
    if fit.fall <= 0 or fit.fall < limits.fall_to_noise * fit.noise:
        return f"visual entropy falls by {fit.fall:.2g}, and {fit.noise:.2g} of it is left over by the fit"
    if samples is not None:
        each = np.asarray(samples, dtype=np.float64)
        falls = each[:, fit.onset] - each[:, fit.valley]
        error = falls.std() / np.sqrt(len(falls))
        if falls.mean() < limits.fall_to_noise * error:
            return f"visual entropy falls by {falls.mean():.2g}, and {error:.2g} of it is chance of the samples"
    random = None if null is None else contrast(np.asarray(null.layer_kl))
    least = limits.contrast if random is None else limits.over_null * random
    if ratio is not None and ratio < least:
        beside = "random weights reach 28" if random is None else f"the same model with random weights has {random:.0f}"
        return f"the heaviest early layer is worth {ratio:.0f} times a late one, and {beside}"
    return ""


def _heard(
    fit: _Fit,
    limits: Limits,
    *,
    text: Curve | None,
    attention: Curve | None,
    layer_kl: Curve | None,
    suffix_kl: Curve | None,
    maturity: Curve | None,
    flow: Curve | None,
) -> dict[Literal["ivr", "ssr"], tuple[Witness, ...]]:
    """What each curve that was measured says about the ends of Stage I and Stage II."""
    valley = Witness(curve="visual entropy", layer=fit.valley, says=f"has its valley at layer {fit.valley}")
    onset = Witness(curve="visual entropy", layer=max(1, fit.onset), says=f"leaves its plateau at layer {fit.onset}")
    return {
        "ivr": (
            onset,
            *_seen(lambda curve: end_of_alignment(curve, "text entropy", limits), text),
            *_seen(lambda curve: end_of_alignment(curve, "attention", limits), attention),
            *_seen(lambda curve: end_of_heavy_layers(curve, limits), layer_kl),
        ),
        "ssr": (
            valley,
            *_seen(lambda curve: harmless_freeze(curve, limits), suffix_kl),
            *_seen(lambda curve: token_decided(curve, limits), maturity),
            *_seen(lambda curve: flow_dried_up(curve, limits), flow),
        ),
    }


def _but_last(text_entropy: ArrayLike | None, layers: int) -> Curve | None:
    """Text entropy without the last boundary: what leaves the decoder is about to become a word."""
    curve = checked("text_entropy", text_entropy, layers + 1)
    return None if curve is None else curve[:-1]


def _seen(look: Callable[[Curve], Witness], curve: Curve | None) -> Iterable[Witness]:
    """The witness of a curve, if that curve was measured."""
    return () if curve is None else (look(curve),)


def _told(witnesses: Iterable[Witness]) -> str:
    return "; ".join(f"{each.curve} {each.says}" for each in witnesses if each.layer is not None)


def _fallback(
    layers: int,
    fit: _Fit,
    ratio: float | None,
    why: str,
    witnesses: dict[Literal["ivr", "ssr"], tuple[Witness, ...]],
) -> Stages:
    """Half the layers untouched, then prune once, and no second stage."""
    layer = layers // 2
    told = f"no three stages found ({why})"
    reasons = {"ivr": f"{told}: cautious choice at half depth", "ssr": told, "mode": told}
    return Stages(layer, layers - 1, "none", False, fit.fall, fit.explained, layers, ratio, reasons, witnesses)
