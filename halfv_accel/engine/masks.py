"""Attention masks for layers that see fewer tokens than the model thinks.

The two kernels want different things. `sdpa`: None for plain causal attention, else bool [B, 1, q, kv] with True where
attention is allowed. `eager`: always a float of that shape, 0 or the dtype's minimum. A layer whose keys outnumber its
queries must always get an explicit mask: with None, sdpa silently cuts keys and values to the first q.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfv_accel.engine.rows import Rows


def as_bool(mask: Tensor) -> Tensor:
    """True where attention is allowed."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def as_kernel_wants(allowed: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """A bool mask in the form of the attention implementation."""
    if implementation == "sdpa":
        return allowed
    return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)


def prefill_mask(
    base: Tensor | None, queries: Rows, frozen: Rows | None, implementation: str, dtype: torch.dtype
) -> Tensor | None:
    """Mask of a reduced layer in the prefill.

    Parameters
    ----------
    base : Tensor or None
        The model's own mask at full length, where it made one.
    queries : Rows
        Tokens that the layer processes.
    frozen : Rows or None
        Tokens that only provide keys and values; they come first among the keys.

    Returns
    -------
    (B, 1, q, kv) Tensor or None
        None where sdpa's own causal attention does the same.
    """
    if base is None and frozen is None and queries.valid is None and implementation == "sdpa":
        return None
    keys = queries if frozen is None else frozen.join(queries)
    allowed = keys.index[:, None, :] <= queries.index[:, :, None]
    if base is not None:
        batch = torch.arange(keys.index.shape[0], device=keys.index.device)[:, None, None]
        full = as_bool(base).expand(keys.index.shape[0], -1, -1, -1)[:, 0]
        allowed = full[batch, queries.index[:, :, None], keys.index[:, None, :]]
    if keys.valid is not None:
        allowed = allowed & keys.valid[:, None, :]
    if queries.valid is not None:  # a row that may attend to nothing turns into NaN in some kernels
        allowed = allowed | ~queries.valid[:, :, None]
    return as_kernel_wants(allowed[:, None], implementation, dtype)


def decode_mask(
    base: Tensor | None, prefix: int, prefix_valid: Tensor | None, tail: int, hidden: Tensor, implementation: str
) -> Tensor | None:
    """Mask of a reduced layer while decoding.

    A reduced layer's cache holds `prefix` places from the prefill and then the same `tail` tokens as any other layer.

    Parameters
    ----------
    base : Tensor or None
        The model's mask for the new tokens, as wide as the unreduced first layer's keys.
    prefix_valid : (B, prefix) bool Tensor or None
        Places of the prefix that are not padding.
    tail : int
        Tokens since the prefill, the new ones included.
    hidden : (B, q, H) Tensor
        The new tokens.
    """
    batch, new = hidden.shape[:2]
    if base is None and prefix_valid is None and new == 1 and implementation == "sdpa":
        return None
    if base is None:
        allowed = torch.ones(new, tail, dtype=torch.bool, device=hidden.device).tril(tail - new)[None, None]
    else:
        allowed = as_bool(base)[..., base.shape[-1] - tail :]
    if prefix_valid is None:
        prefix_valid = torch.ones(batch, prefix, dtype=torch.bool, device=hidden.device)
    past = prefix_valid[:, None, None, :].expand(batch, 1, new, prefix)
    allowed = torch.cat([past, allowed.expand(batch, 1, new, tail)], dim=-1)
    return as_kernel_wants(allowed, implementation, hidden.dtype)
