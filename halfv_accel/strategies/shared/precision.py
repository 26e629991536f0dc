"""Products in whole float32."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_changing = threading.Lock()  # the process's settings for products


@contextmanager
def plain_float32() -> Iterator[None]:
    """No TF32, no bfloat16 in float32 products, whatever the settings: near neighbours would become equal.

    The settings are the process's, so threads that have to change them do so one after the other.
    """
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if not _changing.locked() and all(backend.fp32_precision in ("none", "ieee") for backend in backends):
        yield
        return
    with _changing:
        before = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
