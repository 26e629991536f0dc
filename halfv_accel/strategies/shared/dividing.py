"""A budget divided among parts of a row, exactly, and tokens spread evenly over a row."""

from __future__ import annotations

import torch
from torch import Tensor

from halfv_accel.strategies.protocol import Places
from halfv_accel.strategies.shared.ranking import top_k_mask


def evenly_spaced(candidates: Tensor, count: Tensor) -> Tensor:
    """Mask of `count` candidates of each row, evenly spaced in their order, from the first on.

    Of n candidates, those of rank floor(i n / m) for i = 0 ... m - 1.

    Parameters
    ----------
    candidates : (B, V) bool Tensor
    count : (B,) long Tensor
        Never more than the row's candidates.
    """
    n, m = candidates.sum(1, keepdim=True).clamp(min=1), count[:, None]
    rank = candidates.cumsum(1) - 1
    i = -(-rank * m // n)  # the first whose place is not before this rank
    return candidates & (i * n < m * (rank + 1))


def top_k_in_groups(scores: Tensor, groups: Tensor, quotas: Tensor, present: Tensor) -> Tensor:
    """Mask of the highest scores of each group; among equal scores the earlier token wins.

    Parameters
    ----------
    scores : (B, V) Tensor
    groups : (B, V) long Tensor
        Group of each token; anything on padding.
    quotas : (B, G) long Tensor
        How many to choose in each group.
    present : (B, V) bool Tensor
    """
    none = quotas.shape[1]
    groups = groups.masked_fill(~present, none)
    order = scores.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, groups.gather(1, order).argsort(dim=1, stable=True))
    groups = groups.gather(1, order)
    sizes = torch.zeros(len(quotas), none + 1, dtype=torch.long, device=quotas.device)
    sizes.scatter_add_(1, groups, torch.ones_like(groups))
    rank = torch.arange(groups.shape[1], device=groups.device) - (sizes.cumsum(1) - sizes).gather(1, groups)
    chosen = rank < torch.nn.functional.pad(quotas, (0, 1)).gather(1, groups)
    return torch.zeros_like(present).scatter(1, order, chosen) & present


def apportion(total: Tensor, weights: Tensor, capacity: Tensor) -> Tensor:
    """Divide whole numbers in proportion to weights, by largest remainders; what a full part cannot take, others get.

    Parts of weight zero get something only when all others are full, and then in proportion to their capacity.

    Parameters
    ----------
    total : (N,) long Tensor
        Never more than the capacity of all parts.
    weights : (N, G) Tensor
        Whole numbers are divided without rounding. Negative ones and those that are not finite count as zero.
    capacity : (N, G) long Tensor

    Returns
    -------
    (N, G) long Tensor
        Of sum `total`, nowhere more than `capacity`. Among equal remainders the earlier part gets more.
    """
    if weights.is_floating_point():
        weights = weights.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    weights = weights.clamp(min=0)
    weighted = capacity * (weights > 0)
    first = _divide(torch.minimum(total, weighted.sum(1)), weights, weighted)
    left = capacity - first
    return first + _divide(total - first.sum(1), left, left)


def _divide(total: Tensor, weights: Tensor, capacity: Tensor) -> Tensor:
    """Parts are filled in the order in which growing shares fill them; the others share what is left."""
    weights = weights * (capacity > 0)
    order = (capacity.double() / weights).nan_to_num_(nan=torch.inf).argsort(dim=1, stable=True)
    sizes, shares = capacity.gather(1, order), weights.gather(1, order)
    unfilled = total[:, None] - (sizes.cumsum(1) - sizes)
    behind = shares.flip(1).cumsum(1).flip(1)
    fills = ((sizes * behind <= unfilled * shares) & (shares > 0)).long().cumprod(1)
    full = torch.zeros_like(fills).scatter(1, order, fills) > 0

    shared = (total - (capacity * full).sum(1))[:, None] * (weights * ~full)
    whole = (weights * ~full).sum(1, keepdim=True)
    whole = torch.where(whole > 0, whole, 1)
    quota = torch.where(full, capacity, shared.div(whole, rounding_mode="floor").long())
    open_parts = ~full & (weights > 0) & (quota < capacity)
    return quota + top_k_mask((shared - quota * whole).double(), open_parts, total - quota.sum(1)).long()


def pictures_and_parts(places: Places, present: Tensor) -> tuple[Tensor, Tensor]:
    """Which part of which picture each token is of, and how many tokens these have.

    The device is waited for once.

    Returns
    -------
    groups : (B, V) long Tensor
        picture * parts + part; 0 on padding.
    sizes : (B, pictures, parts) long Tensor
        0 where there is no such part.
    """
    picture, part = (x.masked_fill(~present, 0) for x in (places.picture, places.part))
    pictures, parts = torch.stack([x.max() for x in (picture, part)]).tolist() if present.numel() else (0, 0)
    groups = picture * (parts + 1) + part
    sizes = torch.zeros(len(present), (pictures + 1) * (parts + 1), dtype=torch.long, device=present.device)
    return groups, sizes.scatter_add_(1, groups, present.long()).unflatten(1, (pictures + 1, parts + 1))
