"""Two lessons that make a model's deep layers sparse: stale visual tokens must say nothing, and few must say all.

A *stale* batch freezes the picture's rows from some layer on and teaches each question the answer of another one. So
frozen states become worthless, and what is read in the deep layers depends on what those do to the visual tokens. In a
*few* batch each question keeps, from some layer on, only the visual tokens that its last token attends to most one
layer before. No gradient passes through that choice; a loss on the gaze aims it at the thing that holds the answer.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from halfv_accel.adapters import family_of
from halfv_accel.adapters.base import Rotary, products
from halfv_accel.budget import token_budget
from tiny_vlm.family import IMAGE_SIDE, VISUAL_TOKENS
from tiny_vlm.packing import NO_COLOUR, NO_DIGIT, Batch

GAZE_LAYER = 6  # whose attention chooses what is kept from the next layer on
FEW = token_budget(VISUAL_TOKENS, 0.05)


def last_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Row and place of the last token of each question, both [Q]."""
    labelled = batch.labels >= 0
    rows, places = (labelled[:, 1:] & ~labelled[:, :-1]).nonzero(as_tuple=True)
    return rows, places


def gaze(model: PreTrainedModel, layer: int, states: Tensor, rotary: Rotary, batch: Batch, visual: slice) -> Tensor:
    """Attention of each question's last token over the visual tokens, scored as by the accelerator.

    Parameters
    ----------
    layer : int
        Decoder layer that scores.
    states : Tensor
        [B, L, D], its input.

    Returns
    -------
    Tensor
        [Q, V], mean over heads.
    """
    family, scorer = family_of(model), model.model.language_model.layers[layer]
    rows, places = last_tokens(batch)
    cos, sin = rotary
    queries = family.queries(scorer, states, rotary)[rows, :, places][:, :, None]
    keys = family.keys(scorer, states[:, visual], (cos[:, visual], sin[:, visual]))[rows]
    return (products(queries, keys) * keys.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)


def gaze_loss(attention: Tensor, batch: Batch) -> Tensor:
    """Minus log of the attention to the thing that holds the answer, mean over the questions that have such a thing."""
    rows, places = last_tokens(batch)
    tokens = torch.arange(VISUAL_TOKENS, device=attention.device)
    cells = tokens // IMAGE_SIDE * 3 // IMAGE_SIDE * 3 + tokens % IMAGE_SIDE * 3 // IMAGE_SIDE
    drawn = (batch.colours != NO_COLOUR) | (batch.digits != NO_DIGIT).any(dim=-1)
    wanted = drawn[rows] & (cells == batch.target[rows, places, None])
    aimed = (attention * wanted).sum(dim=1)[wanted.any(dim=1)]
    return -aimed.clamp(min=1e-6).log().mean()


def keep_few(mask: Tensor, attention: Tensor, batch: Batch, visual: slice) -> Tensor:
    """Let each question see only the ``FEW`` visual tokens that it attends to most.

    The questions of a sequence share its visual tokens, so these see what any of the questions keeps. That is more than
    a question alone would leave them; what each question sees is exact.

    Parameters
    ----------
    mask : Tensor
        Bool [B, 1, L, L], true where a token may attend.
    attention : Tensor
        [Q, V], as ``gaze`` gives it.
    """
    rows, places = last_tokens(batch)
    size, length = batch.segments.shape
    kept = torch.zeros(size, int(batch.segments.max()) + 1, VISUAL_TOKENS, dtype=torch.bool, device=mask.device)
    best = torch.zeros_like(attention, dtype=torch.bool).scatter(1, attention.topk(FEW).indices, True)
    kept[rows, batch.segments[rows, places]] = best
    kept[:, 0] = kept.any(dim=1)
    row = torch.arange(size, device=mask.device)[:, None]
    mask = mask.clone()
    mask[:, 0, :, visual] &= kept[row, batch.segments.clamp(min=0)]
    return mask | torch.eye(length, dtype=torch.bool, device=mask.device)  # a dropped token must attend to something


def answers_of_others(batch: Batch) -> Tensor:
    """Labels in which each question has the answer of the next one of its task and answer length."""
    alike = defaultdict(list)
    for row, spans in enumerate(batch.spans):
        for task, start, end in spans:
            alike[task, end - start].append((row, slice(start, end)))
    labels = batch.labels.clone()
    for questions in alike.values():
        for own, other in zip(questions, questions[1:] + questions[:1], strict=True):
            labels[own] = batch.labels[other]
    return labels
