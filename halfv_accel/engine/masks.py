"""Attention masks for layers that see fewer tokens than the model thinks.

The kernels want different things. `sdpa`: None for plain causal attention, else bool [B, 1, q, kv] with True where
attention is allowed. `eager`: always a float of that shape, 0 or the dtype's minimum. `flash`: None, or bool [B, kv]
with True on what is no padding; it is causal by itself, aligned at the end, so frozen keys cannot be expressed. A layer
whose keys outnumber its queries must always get an explicit mask from sdpa and eager: with None, sdpa silently cuts
keys and values to the first q.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from halfv_accel.engine.rows import Rows

Kernel = Literal["sdpa", "eager", "flash"]


def kernel_of(implementation: str) -> Kernel | None:
    """What kind of mask an attention implementation takes; None for one that is not known.

    The names of flash attention are many (flash_attention_2, kernels-community/vllm-flash-attn3), and transformers
    itself tells them by this word.
    """
    if implementation == "sdpa" or implementation == "eager":
        return implementation  # type: ignore[return-value]
    return "flash" if "flash" in implementation and not implementation.startswith("paged|") else None


def as_bool(mask: Tensor) -> Tensor:
    """True where attention is allowed."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def as_kernel_wants(allowed: Tensor, kernel: Kernel, dtype: torch.dtype) -> Tensor:
    """A bool [B, 1, q, kv] mask in the form of the kernel."""
    if kernel == "sdpa":
        return allowed
    return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)


def prefill_mask(
    base: Tensor | None,
    queries: Rows,
    frozen: Rows | None,
    past: int,
    past_valid: Tensor | None,
    kernel: Kernel,
    dtype: torch.dtype,
) -> Tensor | None:
    """Mask of a reduced layer in the prefill.

    Parameters
    ----------
    base : Tensor or None
        The model's own mask for the new tokens at full length, where it made one.
    queries : Rows
        Tokens that the layer processes.
    frozen : Rows or None
        Tokens that only provide keys and values; they come first among the new keys.
    past : int
        Places that the layer's cache holds already.
    past_valid : (B, past) bool Tensor or None
        Those that are not padding; None when all are.

    Returns
    -------
    Tensor or None
        (B, 1, q, kv), for flash (B, kv); None where the kernel's own causal attention does the same.
    """
    keys = queries if frozen is None else frozen.join(queries)
    padded = keys.valid is not None or past_valid is not None
    if kernel == "flash":
        return _beside_past(past_valid, past, keys.present()) if padded else None
    if base is None and frozen is None and past == 0 and not padded and kernel == "sdpa":
        return None
    allowed = keys.index[:, None, :] <= queries.index[:, :, None]
    if base is not None:
        batch = torch.arange(keys.index.shape[0], device=keys.index.device)[:, None, None]
        full = as_bool(base).to(keys.index.device).expand(keys.index.shape[0], -1, -1, -1)[:, 0]
        full = full[..., full.shape[-1] - full.shape[-2] :]  # what lies before are columns of the past
        allowed = full[batch, queries.index[:, :, None], keys.index[:, None, :]]
    if keys.valid is not None:
        allowed = allowed & keys.valid[:, None, :]
    allowed = _beside_past(past_valid, past, allowed)
    if queries.valid is not None:  # a row that may attend to nothing turns into NaN in some kernels
        allowed = allowed | ~queries.valid[:, :, None]
    return as_kernel_wants(allowed[:, None], kernel, dtype)


def decode_mask(
    base: Tensor | None, prefix: int, prefix_valid: Tensor | None, tail: int, hidden: Tensor, kernel: Kernel
) -> Tensor | None:
    """Mask of a reduced layer for new tokens that it processes all.

    A reduced layer's cache holds `prefix` places from the prefill and then the same `tail` tokens as any other layer.

    Parameters
    ----------
    base : Tensor or None
        The model's mask for the new tokens, as wide as the sequence that the caller knows.
    prefix_valid : (B, prefix) bool Tensor or None
        Places of the prefix that are not padding.
    tail : int
        Tokens since the prefill, the new ones included.
    hidden : (B, q, H) Tensor
        The new tokens.
    """
    batch, new = hidden.shape[:2]
    if base is None and prefix_valid is None and (kernel == "flash" or (new == 1 and kernel == "sdpa")):
        return None
    if kernel == "flash":
        ends = torch.ones(batch, tail, dtype=torch.bool, device=hidden.device) if base is None else base.bool()
        return _beside_past(prefix_valid, prefix, ends[:, ends.shape[1] - tail :].to(hidden.device))
    if base is None:
        allowed = torch.ones(new, tail, dtype=torch.bool, device=hidden.device).tril(tail - new)[None, None]
    else:
        allowed = as_bool(base)[..., base.shape[-1] - tail :].to(hidden.device)
    allowed = _beside_past(prefix_valid, prefix, allowed.expand(batch, 1, new, tail)[:, 0])
    return as_kernel_wants(allowed[:, None], kernel, hidden.dtype)


def _beside_past(valid: Tensor | None, places: int, allowed: Tensor) -> Tensor:
    """A [B, kv] or [B, q, kv] mask behind that of earlier places, which every query sees unless they are padding."""
    if places == 0:
        return allowed
    if valid is None:
        valid = torch.ones(len(allowed), places, dtype=torch.bool, device=allowed.device)
    valid = valid.to(allowed.device)
    if allowed.ndim == 3:
        valid = valid[:, None, :].expand(-1, allowed.shape[1], -1)
    return torch.cat([valid, allowed], dim=-1)
