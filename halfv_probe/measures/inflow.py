"""Who feeds whom: from which token each visual token takes most, and whether a few feed them all (HalfV, Appendix D).

The information inflow of token i is argmax_j A[i, j], with A the attention map of a layer averaged over heads. By the
paper, neighbours feed each other in Stage I, a few hubs feed nearly all visual tokens in Stage II, and the flow
scatters in Stage III. It shows this as drawings; here each layer gets numbers: how near the source is, and how unevenly
the visual tokens are spread over their sources.

The argmax is taken literally: over all of the row, the token itself and a prompt's first token, in many models a sink
for idle attention, included. Where sinks hide the picture, exclude them.

>>> information_inflow(model, inputs, exclude={"first"}).hubs.shape  # doctest: +SKIP
torch.Size([32])
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from halfv_accel.adapters import family_of
from halfv_accel.errors import HalfVError
from halfv_probe.measures.attention import watch_attention
from halfv_probe.measures.tokens import Tokens, tokens_of
from halfv_probe.states.entropy import truncated_entropy

HUBS = 0.05  # of the visual tokens, rounded up: so many sources are called hubs
LLAVA_ROW = 24  # visual tokens between two that lie above each other in LLaVA-1.5's 24 x 24 grid
Excluded = Literal["self", "first", "text"]


@dataclass(frozen=True)
class InformationInflow:
    """Where visual tokens take most from, per decoder layer, float64 [L], means over prompts.

    ``visual`` is the share of visual tokens whose source is a visual token, ``local`` the share whose source is one at
    most ``near`` tokens away; ``distance`` the median number of tokens to the source. ``sources`` counts the different
    sources, ``top`` is the share that the most frequent one feeds, ``hubs`` the share that the most frequent ones feed
    (as many as 5 % of the visual tokens), ``entropy`` that of the sources' distribution in nats.
    """

    visual: Tensor
    local: Tensor
    distance: Tensor
    sources: Tensor
    top: Tensor
    hubs: Tensor
    entropy: Tensor


@torch.no_grad()
def information_inflow(
    model: PreTrainedModel, inputs: Mapping[str, Any], exclude: Collection[Excluded] = (), near: int = LLAVA_ROW
) -> InformationInflow:
    """From which token each visual token takes most, and whether a few feed them all.

    Parameters
    ----------
    model, inputs
        As in `attention_balance`.
    exclude : collection of {"self", "first", "text"}
        Tokens that are not taken for a source: the query itself, the prompt's first token (an attention sink in many
        models), all text. Nothing by default: the paper says argmax over the row, and no more. A visual token that has
        no other source left counts nowhere.
    near : int
        Tokens; up to this distance in the sequence a source is local. The sequence stands for the picture's grid,
        whose width differs from model to model.

    Raises
    ------
    HalfVError
        If the model is not supported, a prompt has no visual token, or no visual token of a prompt has a source left.
    """
    unknown = set(exclude) - set(get_args(Excluded))
    if unknown:
        raise HalfVError(f"cannot exclude {sorted(unknown)[0]!r}: choose from {', '.join(get_args(Excluded))}")
    family = family_of(model)
    tokens = tokens_of(family, inputs)
    sources = torch.full((len(family.layers), *tokens.visual.shape), -1)

    def see(layer: int, positions: Tensor, rows: Tensor) -> None:
        rows = rows.masked_fill(_barred(tokens, positions, exclude).to(rows.device), 0.0)
        weight, source = rows.max(dim=-1)
        sources[layer][:, positions.cpu()] = torch.where(weight > 0, source, -1).cpu()  # 0: padding and the future

    with watch_attention(family, tokens.visual, see):
        model(**inputs, use_cache=False, logits_to_keep=1)
    visual = tokens.visual.cpu()
    prompts = [[_inflow(row, mask, near) for row, mask in zip(layer, visual, strict=True)] for layer in sources]
    return InformationInflow(*torch.tensor(prompts, dtype=torch.float64).mean(dim=1).T)


def _barred(tokens: Tokens, positions: Tensor, exclude: Collection[Excluded]) -> Tensor:
    """What is no source for some queries: bool [B, q, S]."""
    batch, length = tokens.visual.shape
    keys = torch.arange(length, device=positions.device)
    barred = torch.zeros(batch, len(positions), length, dtype=torch.bool, device=positions.device)
    if "self" in exclude:
        barred |= keys == positions[:, None]
    if "first" in exclude:
        barred |= keys == tokens.first.to(positions.device)[:, None, None]
    if "text" in exclude:
        barred |= ~tokens.visual.to(positions.device)[:, None]
    return barred


def _inflow(sources: Tensor, visual: Tensor, near: int) -> tuple[float, ...]:
    """The values of `InformationInflow` for one layer of one prompt, from the source of each position or -1: [S]."""
    queries = (visual & (sources >= 0)).nonzero()[:, 0]
    if len(queries) == 0:
        raise HalfVError("no visual token of a prompt has a source left: exclude less, or put text before the picture")
    chosen = sources[queries]
    distance = (queries - chosen).abs().double()
    counts = chosen.unique(return_counts=True)[1].sort(descending=True).values.double()
    hubs = math.ceil(HUBS * int(visual.sum()))
    return (
        visual[chosen].double().mean().item(),
        (visual[chosen] & (distance <= near)).double().mean().item(),
        distance.quantile(0.5).item(),
        float(len(counts)),
        (counts[0] / len(queries)).item(),
        (counts[:hubs].sum() / len(queries)).item(),
        truncated_entropy(counts, k=len(counts)),
    )
