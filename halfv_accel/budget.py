"""How a share becomes a number of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def floor_share(count: int, ratio: float) -> int:
    """floor(count * ratio), immune to binary fractions.

    0.29 * 100 is 28.999999999999996 in floating point, and a plain floor would lose a token that the user asked for.
    Rounding errors of such products stay below 1e-11 for any sequence that fits a machine, so 1e-9 tells them from a
    real fraction.
    """
    return min(count, math.floor(count * ratio + 1e-9))


def floor_shares(counts: Tensor, ratio: float) -> Tensor:
    """`floor_share` of each of many counts: long Tensor."""
    return torch.minimum(counts, torch.floor(counts.double() * ratio + 1e-9).long())


def token_budget(count: int, retention: float) -> int:
    """Visual tokens that a stage keeps: floor(count * retention) of the ORIGINAL count, at least one.

    Zero only when the row has no visual token, or when the retention itself is zero.
    """
    return 0 if count == 0 or retention == 0 else max(1, floor_share(count, retention))
