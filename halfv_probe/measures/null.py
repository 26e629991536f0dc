"""A null model: the same architecture with fresh random weights, as a yardstick for curves.

Random weights have curves, too, and some of them fall and rise. What a trained model's curves mean shows beside them.

>>> fresh(model, seed=0).config == model.config  # doctest: +SKIP
True
"""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel


def fresh(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same class and config, initialised as transformers does, on the model's device and in its dtype.

    The random state of the process is left as it was.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        made = type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype)
    return made.to(model.device).eval()
