"""Cosines of vectors, in float32 whatever the model's precision and settings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from halfv_accel.strategies.shared.precision import plain_float32


def cosines(some: Tensor, others: Tensor) -> Tensor:
    """[..., M, D] with [..., N, D]: [..., M, N]. A vector that is not finite is like no other: -inf."""
    some, others = F.normalize(some.float(), dim=-1), F.normalize(others.float(), dim=-1)
    return products(some, others.mT).nan_to_num_(nan=-torch.inf)


def products(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, not rounded to fewer bits: near neighbours would become equal."""
    with torch.autocast(left.device.type, enabled=False), plain_float32():
        return left.float() @ right.float()


def packed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the marked tokens of each row, first ones first: [B, most] long, and which of these are marked.

    The device is waited for once.
    """
    order = mask.int().argsort(dim=1, descending=True, stable=True)
    order = order[:, : int(mask.sum(1).max()) if mask.numel() else 0]
    return order, mask.gather(1, order)


def taken(values: Tensor, places: Tensor) -> Tensor:
    """Vectors [B, N, D] of the tokens at `places` [B, M]: [B, M, D]."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def replaced(values: Tensor, places: Tensor, new: Tensor, where: Tensor) -> Tensor:
    """Vectors [B, N, D] with new ones [B, M, D] at the `places` [B, M] that `where` [B, M] marks.

    All others stay as they are, to the last bit.
    """
    new = torch.where(where[..., None], new.to(values.dtype), taken(values, places))
    return values.scatter(1, places[..., None].expand_as(new), new)
