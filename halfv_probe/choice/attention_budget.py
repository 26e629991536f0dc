"""FitPrune's calibration (Ye et al., 2024, arXiv 2409.10197): how many tokens each layer can do without.

A layer may lose so many tokens that the rest still holds all but a share alpha of the attention that the untouched
layer gives to visual tokens: of the text's, and of the visual tokens' own. The least attended tokens go first; a token
goes when both say so, and is gone from the layers behind. There is one alpha for all layers; bisection finds the one
that meets the FLOPs.

The public code finds alpha to within 0.01, on a forward pass for each trial, and with LLaVA's sizes in its count of
FLOPs. Here the statistics of the untouched model are measured once, as the paper says, and the cost is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halfv_accel.errors import HalfVError

Received = NDArray[np.float64]  # [layers, V]: attention that each visual token receives
STEPS = 30  # of the bisection: alpha to nine digits


@dataclass(frozen=True)
class AttentionBudget:
    """``alpha`` is the share of a layer's attention that may be lost with the tokens that go.

    ``tokens`` are those that each layer processes, never more than the layer before. The first layer processes all:
    what it attends to decides who goes on to the second.
    """

    alpha: float
    tokens: list[int]


def attention_budget(
    from_text: Sequence[ArrayLike],
    from_picture: Sequence[ArrayLike],
    visual: int,
    cost: Callable[[list[int]], float],
    target: float,
    most: float = 1.0,
) -> AttentionBudget:
    """Visual tokens that each layer processes, at an alpha as small as bisection finds it for the target.

    Parameters
    ----------
    from_text, from_picture : sequence of (layers, V) array-like
        For each sample, the attention that its visual tokens receive in each layer of the untouched model from the
        text and from the visual tokens. Every sample has its own V, at least 1.
    visual : int
        Visual tokens of the prompt that is counted; the samples' mean shares are taken of them, rounded up.
    cost : callable
        Of a list of tokens per layer, in any unit: FLOPs, or a share of them.
    target : float
        In the unit of `cost`.
    most : float
        The largest alpha to take. At 1 all tokens go.

    Returns
    -------
    AttentionBudget

    Raises
    ------
    HalfVError
        If the statistics do not fit together, or not even the largest alpha is cheap enough.
    """
    samples = _checked(from_text, from_picture)
    if cost(_tokens(samples, visual, 0.0)) <= target:
        return AttentionBudget(0.0, _tokens(samples, visual, 0.0))
    cheapest = cost(_tokens(samples, visual, most))
    if not cheapest <= target:
        raise HalfVError(f"the least that dropping tokens can cost is {cheapest:.3g}: give a target from there on")
    low, high = 0.0, most
    for _ in range(STEPS):
        alpha = (low + high) / 2
        low, high = (low, alpha) if cost(_tokens(samples, visual, alpha)) <= target else (alpha, high)
    return AttentionBudget(high, _tokens(samples, visual, high))


def tokens_at(
    from_text: Sequence[ArrayLike], from_picture: Sequence[ArrayLike], visual: int, alpha: float
) -> list[int]:
    """Visual tokens that each layer processes at one alpha; otherwise as `attention_budget`."""
    return _tokens(_checked(from_text, from_picture), visual, alpha)


def _tokens(samples: list[tuple[Received, Received]], visual: int, alpha: float) -> list[int]:
    shares = np.mean([_shares(text, picture, alpha) for text, picture in samples], axis=0)
    return [math.ceil(share * visual - 1e-9) for share in shares]  # see floor_share


def _shares(from_text: Received, from_picture: Received, alpha: float) -> list[float]:
    """Share of a sample's tokens that each layer processes."""
    alive = np.ones(from_text.shape[1], dtype=bool)
    shares = []
    for text, picture in zip(from_text, from_picture, strict=True):
        shares.append(float(alive.mean()))
        alive = alive & (_needed(text, alive, alpha) | _needed(picture, alive, alpha))
    return shares


def _needed(received: NDArray[np.float64], alive: NDArray[np.bool_], alpha: float) -> NDArray[np.bool_]:
    """The fewest of the living tokens, most attended first, that hold all but alpha of what all tokens received."""
    order = np.argsort(-np.where(alive, received, -1.0), kind="stable")
    before = np.concatenate([[0.0], np.cumsum(received[order])[:-1]])  # held by those in front
    short = before < (1 - alpha) * received.sum() * (1 - 1e-12)  # sums in another order are not quite the same
    needed = np.zeros_like(alive)
    needed[order] = short
    return needed & alive


def _checked(from_text: Sequence[ArrayLike], from_picture: Sequence[ArrayLike]) -> list[tuple[Received, Received]]:
    texts, pictures = ([np.asarray(x, dtype=np.float64) for x in many] for many in (from_text, from_picture))
    shapes = [x.shape for x in texts]
    if not texts or shapes != [x.shape for x in pictures] or any(len(x) != 2 or not x[1] for x in shapes):
        raise HalfVError(
            f"the statistics of {len(texts)} and {len(pictures)} samples do not fit together: give both for each "
            "sample, as [layers, tokens]"
        )
    if len({layers for layers, _ in shapes}) != 1:
        raise HalfVError("samples have different numbers of layers: give statistics of one model")
    if not all((x >= 0).all() and np.isfinite(x).all() for x in (*texts, *pictures)):
        raise HalfVError("some attention is negative or not finite: give softmaxed attention, summed or averaged")
    return list(zip(texts, pictures, strict=True))
