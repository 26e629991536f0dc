"""Layer redundancy (HalfV, Appendix F, Eq. 36-38): what a layer's work on one kind of token is worth.

The updates of all visual (or text) tokens are terminated at one layer: attention output and FFN of those rows are
dropped, everything else runs. The KL divergence between the next-token distributions of the untouched and the
terminated model is the layer's redundancy score: near zero, the layer does nothing that the answer needs.

Within a layer, the other rows read keys and values of the layer's INPUT, so restoring the terminated rows after the
layer is exactly Eq. 38.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from halfv_accel.adapters import family_of


def layer_redundancy(
    model: PreTrainedModel, inputs: Mapping[str, Any], tokens: Literal["visual", "text"] = "visual"
) -> Tensor:
    """KL divergence per layer when the updates of one kind of token are terminated there.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    inputs : mapping
        What the processor returns for one or several prompts: input_ids, pixel values and so on. Padding, if any, must
        be on the left, so that the last position is each row's last token.
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
    family = family_of(model)
    visual = family.visual_positions(inputs["input_ids"])
    if not visual.any():
        raise ValueError("layer redundancy of visual tokens needs a prompt with a picture in it")
    terminated = visual if tokens == "visual" else ~visual
    untouched = _next_token_log_probabilities(model, inputs)
    divergences = []
    for layer in family.layers:
        handle = layer.register_forward_hook(_restore(terminated), with_kwargs=True)
        try:
            changed = _next_token_log_probabilities(model, inputs)
        finally:
            handle.remove()
        divergences.append(F.kl_div(changed, untouched, reduction="batchmean", log_target=True))
    return torch.stack(divergences).clamp(min=0)


def _restore(rows: Tensor) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        states = args[0] if args else kwargs["hidden_states"]
        return torch.where(rows[..., None].to(states.device), states, output)

    return hook


@torch.no_grad()
def _next_token_log_probabilities(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """float64 [batch, vocabulary] on the CPU."""
    logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
    return F.log_softmax(logits.double(), dim=-1).cpu()
