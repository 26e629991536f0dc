"""Opening the model that a user named."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import typer


def open_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Model and processor of an embedded model, a known name, a hub id or a folder; without the loader's chatter."""
    import transformers

    import tiny_vlm
    from halfv_accel import HalfVError
    from halfv_accel.models import load_model

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place = tiny_vlm.checkpoint(name) if name in tiny_vlm.NAMES else name
    if place == name and name.startswith("tiny-") and "/" not in name and not Path(name).exists():
        raise HalfVError(f"no embedded model is called {name!r}: choose one of {', '.join(tiny_vlm.NAMES)}")
    return load_model(place, device, dtype, tell=partial(typer.echo, err=True))


def lasting_name(name: str) -> str:
    """How a profile remembers a model: a folder by its absolute path, so that it is found from elsewhere too."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
