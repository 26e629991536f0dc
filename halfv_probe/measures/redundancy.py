"""Layer redundancy (HalfV, Appendix F, Eq. 36-38): what a layer's work on one kind of token is worth.

The updates of all visual (or text) tokens are terminated at one layer: attention output and FFN of those rows are
dropped, everything else runs. The KL divergence between the next-token distributions of the untouched and the
terminated model is the layer's redundancy score: near zero, the layer does nothing that the answer needs.

Freezing, however, terminates a layer AND all behind it. Layers that are redundant one at a time may be needed together,
so the same is measured for every suffix of the stack: the suffix redundancy, which the paper does not have.

Within a layer, the other rows read keys and values of the layer's INPUT, which is Eq. 38. What comes before the
terminated layer is run once and shared by all; terminated rows cost their keys and values only.

>>> redundancies(model, inputs).layer.shape  # doctest: +SKIP
torch.Size([1, 28])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from halfv_probe.measures.replay import Replay


@dataclass(frozen=True)
class Redundancies:
    """For each prompt of a batch: float64 [B, L] on the CPU, entry l belongs to decoder layer l.

    ``layer`` is the KL in nats when layer l alone is terminated, ``suffix`` when l and all layers behind it are,
    ``same`` whether the most likely next token survives the latter (bool).
    """

    layer: Tensor
    suffix: Tensor
    same: Tensor


def layer_redundancy(
    model: PreTrainedModel, inputs: Mapping[str, Any], tokens: Literal["visual", "text"] = "visual"
) -> Tensor:
    """KL divergence per layer when the updates of one kind of token are terminated there.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    inputs : mapping
        What the processor returns for one or several prompts: input_ids, pixel values and so on, padded on either side.
    tokens : {"visual", "text"}
        Whose updates are terminated.

    Returns
    -------
    Tensor
        float64 [L], nats, averaged over the batch; entry l belongs to decoder layer l.

    Raises
    ------
    HalfVError
        If the architecture is not supported.
    ValueError
        If no prompt holds a visual token.
    """
    return redundancies(model, inputs, tokens, suffix=False).layer.mean(dim=0)


def redundancies(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    tokens: Literal["visual", "text"] = "visual",
    suffix: bool = True,
) -> Redundancies:
    """Redundancy of every layer and of every suffix of layers, prompt by prompt; otherwise as `layer_redundancy`.

    Without ``suffix``, the suffixes are left out, which halves the work.
    """
    replay = Replay(model, inputs)
    visual = replay.prefill.visual
    if not visual.any():
        raise ValueError("layer redundancy needs a prompt with a picture in it")
    others = replay.prefill.active & (~visual if tokens == "visual" else visual)
    untouched = replay.untouched[:, 0].double()
    layer, suffixes, same = [], [], []
    states = replay.first
    for index in range(replay.depth):
        narrow = replay.prefill.fork()
        narrow.keep(others.to(states.device), "freeze")
        beyond = replay.step(index, states, narrow)
        layer.append(_divergence(untouched, replay.run_on(index + 1, beyond, replay.prefill)[:, 0]))
        if suffix:
            ends = replay.run_on(index + 1, beyond, narrow)[:, 0]
            suffixes.append(_divergence(untouched, ends))
            same.append((ends.argmax(-1) == untouched.argmax(-1)).cpu())
        states = replay.step(index, states, replay.prefill)
    replay.compare(replay.log_probabilities(states))
    none = torch.empty(len(visual), 0)
    return Redundancies(
        torch.stack(layer, dim=1),
        torch.stack(suffixes, dim=1) if suffix else none,
        torch.stack(same, dim=1) if suffix else none.bool(),
    )


def _divergence(untouched: Tensor, changed: Tensor) -> Tensor:
    """KL(untouched || changed) of each row's log-probabilities [B, vocabulary], in nats: float64 [B] on the CPU."""
    return kl_divergence(untouched, changed.double()).cpu()


def kl_divergence(untouched: Tensor, changed: Tensor) -> Tensor:
    """KL(untouched || changed) over the last dimension of log-probabilities, in nats; rounding never makes it < 0."""
    return (untouched.exp() * (untouched - changed)).sum(dim=-1).clamp(min=0)
