"""Attention that visual tokens receive in every layer of the untouched model, as FitPrune's strategy sees it.

>>> received_attention(model, inputs)[0].text.shape  # doctest: +SKIP
torch.Size([32, 576])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from halfv_accel import HalfVError
from halfv_accel.engine.rows import Rows
from halfv_accel.engine.view import LayerView
from halfv_probe.measures.replay import Replay


@dataclass(frozen=True)
class Received:
    """Of one prompt: float32 [L, V] on the CPU, mean over the queries, of the head that gives each token most.

    ``text`` is what its visual tokens receive from its text tokens, ``visual`` what they receive from each other.
    """

    text: Tensor
    visual: Tensor


@torch.no_grad()
def received_attention(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[Received]:
    """The attention that visual tokens receive, layer by layer; maps are held in chunks only.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    inputs : mapping
        What the processor returns for one or several prompts, padded on either side.

    Raises
    ------
    HalfVError
        If the architecture is not supported, or a prompt has no visual token.
    """
    replay = Replay(model, inputs)
    prefill = replay.prefill
    counts = prefill.counts
    if not all(counts):
        raise HalfVError(f"prompt {counts.index(0)} of the batch holds no visual token: put a picture into each prompt")
    visual = Rows.packed_left(prefill.visual, counts)
    text, picture = [], []
    states = replay.first
    for index in range(replay.depth):
        device = states.device
        shown, last = visual.to(device), prefill.last.to(device)
        said = prefill.words.to(device), prefill.spoken
        view = LayerView(replay.family, index, None, replay.here(states, index), shown, said, last, prefill.fidelity)
        text.append(view.text_attention(view.text_present, "own").amax(1).cpu())
        picture.append(view.visual_attention("own").amax(1).cpu())
        if index < replay.depth - 1:
            states = replay.step(index, states, prefill)
    both = torch.stack(text, dim=1), torch.stack(picture, dim=1)  # [B, L, V]
    return [Received(both[0][row, :, :many].clone(), both[1][row, :, :many].clone()) for row, many in enumerate(counts)]
