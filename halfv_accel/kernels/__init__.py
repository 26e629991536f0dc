"""Kernels for GPUs, in Triton. Import them only where they run: Triton is optional, and importing it takes a second."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch


@cache
def triton_works() -> bool:
    """Whether a kernel of one token runs: Triton needs a C compiler, headers, a folder to write to, a recent GPU."""
    if find_spec("triton") is None or not torch.cuda.is_available():
        return False
    try:
        from halfv_accel.kernels.farthest_points import farthest_points

        one = torch.ones(1, 1, dtype=torch.bool, device="cuda")
        farthest_points(one[..., None].float(), one, one, one[0].long())
    except Exception as error:  # whatever a machine lacks
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"Triton does not run here ({reason}): tokens are chosen by the slower torch path", stacklevel=2)
        return False
    return True
