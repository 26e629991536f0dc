"""Ranks and top-k per row, for rows with their own k."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k_mask(scores: Tensor, present: Tensor, budget: Tensor) -> Tensor:
    """Mask of the highest scores of each row; among equal scores the earlier token wins.

    Parameters
    ----------
    scores : (B, V) Tensor
    present : (B, V) bool Tensor
        Places that may be chosen.
    budget : (B,) long Tensor
        How many to choose in each row.
    """
    scores = scores.clamp(min=torch.finfo(scores.dtype).min)  # -inf, too, comes before what is not present
    order = scores.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device)
    chosen = places < budget[:, None]  # in ranking order
    return torch.zeros_like(present).scatter(1, order, chosen) & present


def ranks(scores: Tensor, present: Tensor) -> Tensor:
    """Place of each token in its row's ranking, 0 for the highest score; equal ones in order.

    Parameters
    ----------
    scores : (B, V) Tensor
    present : (B, V) bool Tensor
        The others are behind.

    Returns
    -------
    (B, V) long Tensor
    """
    order = scores.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
