"""Opening the model that a user named."""

from __future__ import annotations

from typing import Any


def open_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Model and processor of an embedded model, a known name, a hub id or a folder; without the loader's chatter."""
    import transformers

    import tiny_vlm
    from halfv_accel.models import load_model

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    source = str(tiny_vlm.checkpoint(name)) if name.startswith("tiny-") else name
    return load_model(source, device=device, dtype=dtype)
