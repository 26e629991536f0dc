"""Density peaks (Rodriguez and Laio, 2014), with the density of the nearest neighbours: which points go together.

A centre lies in a dense place, far from any denser one. With d the distance over the square root of the dimension,
rho_i = exp(-mean of d_ij^2 over i's nearest neighbours), delta_i = the distance to the nearest denser point (for the
densest one: to the farthest point), and the centres are the points with the largest rho x delta. Everything is compared
as logarithms, because exp underflows where hidden states are large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfv_accel.strategies.shared.cosines import products
from halfv_accel.strategies.shared.ranking import top_k_mask


def density_peaks(points: Tensor, present: Tensor, clusters: Tensor) -> Tensor:
    """The first member of each point's cluster.

    Parameters
    ----------
    points : (B, N, H) Tensor
    present : (B, N) bool Tensor
        Real points, packed to the left.
    clusters : (B,) long Tensor
        How many clusters, at most as many as points; also how many neighbours make a density, the point included.

    Returns
    -------
    (B, N) long Tensor
        Index of the earliest point in the same cluster. Padding stands for itself.
    """
    if points.shape[1] == 0:
        return torch.zeros(points.shape[:2], dtype=torch.long, device=points.device)
    squared = _squared_distances(points.float(), present)
    centres = top_k_mask(_peaks(squared, present, clusters), present, clusters)
    index = torch.arange(points.shape[1], device=points.device).expand_as(present)
    nearest = squared.masked_fill(~centres[:, None], torch.inf).argmin(dim=2)  # the earlier of equal ones
    label = torch.where(centres | ~present, index, nearest)
    first = torch.full_like(index, points.shape[1]).scatter_reduce(1, label, index, "amin")
    return first.gather(1, label)


def _squared_distances(points: Tensor, present: Tensor) -> Tensor:
    """[B, N, N], over the dimension; inf to padding."""
    real = present[..., None]
    points = points.masked_fill(~real, 0.0)
    centre = points.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    points = (points - centre) * points.shape[-1] ** -0.5  # near the origin, differences of squares are exact enough
    norms = (points * points).sum(-1)
    squared = (norms[:, :, None] + norms[:, None] - 2 * products(points, points.mT)).clamp(min=0)
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared.masked_fill(~present[:, None], torch.inf)


def _peaks(squared: Tensor, present: Tensor, neighbours: Tensor) -> Tensor:
    """log(rho x delta): [B, N]."""
    index = torch.arange(squared.shape[1], device=squared.device)
    near = squared.sort(dim=2).values.masked_fill(index >= neighbours[:, None, None], 0.0)
    log_rho = -near.sum(2) / neighbours.clamp(min=1)[:, None]
    of, to = log_rho[:, :, None], log_rho[:, None]
    denser = ((to > of) | ((to == of) & (index < index[:, None]))) & present[:, None]
    nearest = squared.masked_fill(~denser, torch.inf).amin(2)
    farthest = squared.masked_fill(~present[:, None], -torch.inf).amax(2)
    return log_rho + 0.5 * torch.where(denser.any(2), nearest, farthest).log()
