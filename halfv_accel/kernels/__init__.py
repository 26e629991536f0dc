"""Kernels for GPUs, in Triton. Import them only where they run: Triton is optional, and importing it takes a second."""

from __future__ import annotations

import os
import shutil
from functools import cache
from importlib.util import find_spec


@cache
def triton_works() -> bool:
    """Whether Triton is installed and finds the C compiler with which it builds its launchers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and find_spec("triton") is not None
