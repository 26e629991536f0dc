"""What makes two models the same for a profile: architecture, depth, width, and the shape of every parameter."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ModelInfo(BaseModel):
    """The model that a profile was measured on.

    `id` is for people; the fingerprint decides. Weights do not enter it, so that every dtype and device gives the same.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(description="Hub id or folder, as the user gave it.")
    architecture: str = Field(description="transformers class of the model.")
    num_layers: int = Field(ge=2, description="Decoder layers.")
    hidden_size: int = Field(ge=1, description="Width of the decoder.")
    fingerprint: str = Field(description="First 16 hex digits of a SHA-256 over architecture, parameter names, shapes.")


def fingerprint(model: Any) -> str:
    """16 hex digits over the architecture and the sorted names and shapes of all parameters."""
    lines = sorted(f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters())
    text = "\n".join([type(model).__name__, *lines])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_info(model: Any, id: str) -> ModelInfo:
    """Describe a model for a profile."""
    text = model.config.get_text_config()
    return ModelInfo(
        id=id,
        architecture=type(model).__name__,
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        fingerprint=fingerprint(model),
    )
