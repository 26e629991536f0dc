"""How rich a picture is before the language model has seen it (AdaVTP, Section 3 and Appendix A).

Effective rank (Eq. 3 and 7): exp of the entropy of the SINGULAR values of the visual tokens, normalised to sum 1. Here
they are taken as they enter the decoder, behind the projector. (The matrix entropy of HalfV takes eigenvalues, the
squares of these.) It lies between 1 and min(tokens, width).

Attention entropy (Eq. 1-2): the class token's attention in the penultimate layer of the vision tower, mean over heads,
without itself, normalised; its entropy is low where few patches carry the picture. Only CLIP-like towers have a class
token. In the towers of Qwen there is none: there, the attention that each patch receives is averaged over all queries
of the picture, and the entropy is that of this distribution. The two are different measures, and the result says which
one it is. A windowed layer is measured window by window, so nothing flows between windows, as in the tower.

>>> vision_effective_rank(model, inputs).shape, vision_attention(model, inputs).measured  # doctest: +SKIP
(torch.Size([1]), 'class token')
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from halfv_accel.adapters import Family, family_of
from halfv_accel.engine.refusals import check_evaluating
from halfv_accel.errors import HalfVError
from halfv_probe.measures.attention import ENTRIES
from halfv_probe.measures.capture import watch_boundaries
from halfv_probe.measures.tokens import tokens_of
from halfv_probe.states.entropy import truncated_entropy
from halfv_probe.states.spectra import spectrum

TOWERS = ("vision_tower", "image_tower", "video_tower", "visual")
Measured = Literal["class token", "received"]


@dataclass(frozen=True)
class VisionAttention:
    """``entropy``: float64 [views], nats. A view is what the tower sees at once, in its order: a picture, one of a
    picture's tiles, or (one or two merged) frames of a video; pictures come before videos.

    ``measured`` says whose attention: the ``"class token"``'s, or that ``"received"`` by each patch from all patches.
    """

    entropy: Tensor
    measured: Measured


@torch.no_grad()
def vision_effective_rank(model: PreTrainedModel, inputs: Mapping[str, Any], separators: bool = True) -> Tensor:
    """Effective rank of each prompt's visual tokens in front of the first decoder layer.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    inputs : mapping
        What the processor returns for one or several prompts, padded on either side.
    separators : bool
        Do visual tokens that show nothing (LLaVA-NeXT's newlines, Video-LLaVA's CLS) count? Strategies before the
        language model do not see them.

    Returns
    -------
    Tensor
        float64 [B], between 1 and min(visual tokens, width).

    Raises
    ------
    HalfVError
        If the model is not supported, or a prompt has no visual token.
    """
    check_evaluating(model)
    family = family_of(model)
    visual = tokens_of(family, inputs).visual
    if not separators:
        visual = visual & ~family.structure(inputs["input_ids"], inputs).places.separator
    ranks: list[float] = []

    def see(boundary: int, states: Tensor) -> None:
        if boundary == 0:
            for row, mask in zip(states, visual.to(states.device), strict=True):
                singular = spectrum(row[mask]).sqrt()
                ranks.append(math.exp(truncated_entropy(singular, k=len(singular))))

    with watch_boundaries(family.layers, see):
        model(**inputs, use_cache=False, logits_to_keep=1)
    return torch.tensor(ranks, dtype=torch.float64)


@torch.no_grad()
def vision_attention(model: PreTrainedModel, inputs: Mapping[str, Any]) -> VisionAttention:
    """Entropy of attention in the penultimate layer of the vision tower.

    Parameters
    ----------
    model, inputs
        As in `vision_effective_rank`.

    Raises
    ------
    HalfVError
        If the model is not supported, its tower is neither like CLIP nor like Qwen's, or no tower ran.
    """
    check_evaluating(model)
    family = family_of(model)
    tokens_of(family, inputs)
    found: list[float] = []
    with ExitStack() as installed:
        kinds = {_watch(tower, found, installed) for tower in _towers(family)}
        model(**inputs, use_cache=False, logits_to_keep=1)
    if not found:
        raise HalfVError("the vision tower did not run: give the pictures as pixels and not encoded")
    return VisionAttention(torch.tensor(found, dtype=torch.float64), kinds.pop())


def _towers(family: Family) -> list[nn.Module]:
    towers = [getattr(family.core, name, None) for name in TOWERS]
    found = [tower for tower in towers if isinstance(tower, nn.Module)]
    if not found:
        raise HalfVError(
            f"{type(family.model).__name__} has no vision tower where HalfV looks for one: {', '.join(TOWERS)}"
        )
    return found


def _watch(tower: nn.Module, found: list[float], installed: ExitStack) -> Measured:
    """Let a tower's penultimate layer add the entropies of its views; says what they are entropies of."""
    lists = [module for name, module in tower.named_modules() if name.split(".")[-1] in ("layers", "blocks")]
    layer = lists[0][-2] if lists and isinstance(lists[0], nn.ModuleList) and len(lists[0]) > 1 else None
    attention: Any = getattr(layer, "self_attn", getattr(layer, "attn", None))
    if hasattr(attention, "q_proj") and any(name.endswith("class_embedding") for name, _ in tower.named_parameters()):
        _watch_class_token(attention, found, installed)
        return "class token"
    if hasattr(attention, "qkv"):
        _watch_patches(tower, attention, found, installed)
        return "received"
    raise HalfVError(
        f"the attention of {type(tower).__name__} cannot be measured, since it has neither a class token nor the form "
        "of Qwen's: leave attention entropy out"
    )


def _watch_class_token(attention: Any, found: list[float], installed: ExitStack) -> None:
    def before(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        found.extend(map(_entropy, _class_token_attention(attention, states)))

    installed.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)


def _watch_patches(tower: nn.Module, attention: Any, found: list[float], installed: ExitStack) -> None:
    views: list[int] = []  # patches in each

    def before_tower(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        frames, rows, columns = (kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]).T
        views[:] = (rows * columns).repeat_interleave(frames).tolist()

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        found.extend(map(_entropy, _received_attention(attention, states, kwargs).split(views)))

    installed.callback(tower.register_forward_pre_hook(before_tower, with_kwargs=True).remove)
    installed.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)


def _entropy(weights: Tensor) -> float:
    """Of weights that are normalised on the way, in nats."""
    return truncated_entropy(weights, k=len(weights))


def _class_token_attention(attention: Any, states: Tensor) -> Tensor:
    """What the class token, the first of [V, 1 + N, H], gives to the others: [V, N]."""
    projected = attention.q_proj(states[:, :1]), attention.k_proj(states)
    queries, keys = (some.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).float() for some in projected)
    weights = (queries @ keys.mT * attention.scale).softmax(dim=-1)  # [V, heads, 1, 1 + N]
    return weights.mean(dim=1)[:, 0, 1:]


def _received_attention(attention: Any, states: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """What each patch of [N, H] receives from all queries of its window, summed: [N]. Windows end at ``cu_seqlens``."""
    queries, keys, _ = attention.qkv(states).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
    queries, keys = (heads.transpose(0, 1).float() for heads in rotate(queries, keys, *kwargs["position_embeddings"]))
    lengths = kwargs["cu_seqlens"].diff().tolist()
    received = []
    for some, window in zip(queries.split(lengths, dim=1), keys.split(lengths, dim=1), strict=True):
        total = window.new_zeros(window.shape[1])
        for chunk in some.split(max(1, ENTRIES // (len(window) * window.shape[1])), dim=1):
            weights = (chunk @ window.mT * attention.scaling).softmax(dim=-1)  # [heads, q, n]
            total += weights.mean(dim=0).sum(dim=0)
        received.append(total)
    return torch.cat(received)
