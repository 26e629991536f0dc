"""One pick after another, for all rows at once, and without a word from the device.

Greedy choices differ in what a token is worth, and in what a pick does to the worth of the others. `greedy_picks` is
the loop that they share; `volume_picks` is the greedy maximum of a determinant, which CDPruner and InfoPrune ask for.
Farthest points have a loop and a kernel of their own (halfv_accel.strategies.farthest_points).

A pick compares its token with all others, so N tokens cost N products a pick and no table of N x N is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from halfv_accel.strategies.shared.cosines import taken
from halfv_accel.strategies.shared.precision import plain_float32
from halfv_accel.strategies.shared.ranking import top_k_mask

After = Callable[[Tensor, Tensor, int], Tensor]
SPANNED = 1e-5  # of its squared length: less than that left of a vector is float32's rounding


def most_of(budget: Tensor) -> int:
    """The largest budget. The host waits for it, once a choice."""
    return int(budget.max()) if budget.numel() else 0


def greedy_picks(worth: Tensor, budget: Tensor, most: int, after: After) -> Tensor:
    """Pick the token that is worth most, again and again; among equal ones the earlier token wins.

    Parameters
    ----------
    worth : (B, V) Tensor
        -inf: not to be picked.
    budget : (B,) long Tensor
        Picks of each row, at most: a row in which nothing can be picked any more is done.
    most : int
        The largest budget.
    after : callable
        What all tokens are worth after a pick, from what they were worth (B, V), the pick (B, 1), and how many were
        made before it. What it says of rows that are done does not count.

    Returns
    -------
    (B, V) bool Tensor
        A smaller budget gives a subset.
    """
    picked = torch.zeros(worth.shape, dtype=torch.bool, device=worth.device)
    with torch.autocast(worth.device.type, enabled=False), plain_float32():
        for turn in range(most if worth.numel() else 0):
            pick = worth.argmax(dim=1, keepdim=True)
            counts = (turn < budget[:, None]) & (worth.gather(1, pick) > -torch.inf)
            picked.scatter_(1, pick, picked.gather(1, pick) | counts)
            if turn + 1 < most:
                worth = after(worth, pick, turn).scatter(1, pick, -torch.inf)
    return picked


def volume_picks(vectors: Tensor, worth: Tensor, budget: Tensor, most: int, floor: Tensor) -> Tensor:
    """Pick the token whose vector leaves most beside the span of those that are picked, again and again.

    That is the greedy maximum of the determinant of the picked ones' Gram matrix, by incremental Cholesky: with L the
    Gram matrix and d2 the squared residuals, a pick j gives e = (L_j - sum of earlier e, times their entry j) /
    sqrt(d2_j), and d2 falls by e^2 (Chen et al., Fast Greedy MAP Inference for Determinantal Point Processes, 2018).

    Parameters
    ----------
    vectors : (B, V, H) float32 Tensor
    worth : (B, V) float32 Tensor
        Squared lengths; -inf where nothing is to be picked.
    budget, most
        As in `greedy_picks`.
    floor : (B, V) or (B, 1) Tensor
        A token of which no more than that is left is not picked any more. Not negative.

    Returns
    -------
    (B, V) bool Tensor
        Fewer than the budget where the picked ones span the others.
    """
    factors = vectors.new_empty(len(worth), most, worth.shape[1])

    def after(worth: Tensor, pick: Tensor, turn: int) -> Tensor:
        row = compared(vectors, pick)
        if turn:
            earlier = factors[:, :turn]
            own = earlier.gather(2, pick[:, None].expand(-1, turn, -1))
            row = row - (own.mT @ earlier)[:, 0]
        row = row * worth.gather(1, pick).clamp_min(torch.finfo(row.dtype).tiny).rsqrt()
        factors[:, turn] = row
        return _above(worth - row.square(), floor)

    return greedy_picks(_above(worth, floor), budget, most, after)


def volume_flops(tokens: int, picks: int, hidden: int) -> int:
    """Operations of `volume_picks` in one row: nothing is compared with the last pick."""
    earlier = (picks - 1) * (picks - 2) // 2
    return 2 * tokens * (hidden * (picks - 1) + earlier) if picks else 0


def compared(vectors: Tensor, pick: Tensor) -> Tensor:
    """Products of each row's picked vector with all vectors: [B, V]."""
    return (taken(vectors, pick) @ vectors.mT)[:, 0]


def finite(states: Tensor) -> Tensor:
    """States in float32 [B, V, H]; one that is not finite is zero, so that it says nothing about the others."""
    states = states.float()
    return states.masked_fill(~states.isfinite().all(dim=-1, keepdim=True), 0.0)


def directions(states: Tensor) -> Tensor:
    """`finite` states of length one."""
    return F.normalize(finite(states), dim=-1)


def filled(picked: Tensor, scores: Tensor, present: Tensor, budget: Tensor) -> Tensor:
    """Picks and, where they are fewer than the budget, the highest scores of the others."""
    return picked | top_k_mask(scores, present & ~picked, budget - picked.sum(1))


def _above(worth: Tensor, floor: Tensor) -> Tensor:
    return worth.masked_fill(~(worth > floor), -torch.inf)  # a NaN is not greater
