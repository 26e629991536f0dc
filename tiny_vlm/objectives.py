"""Auxiliary heads of the training recipe; they are dropped before a checkpoint is saved.

Answers alone teach a small tower slowly. Linear heads on the visual features name colour, shape and digits of each
token, and whether it is the middle of a shape (things can be counted once each has a token of its own). Three more sit
inside the language model and pull the reading of the picture into its deeper layers: the place of each visual token
after layer 2, the place of a named thing on its word after layer 5, and the grid cell of the answer on the last token
of the question after layer 6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny_vlm.family import IMAGE_SIDE, VISUAL_TOKENS
from tiny_vlm.packing import NO_COLOUR, NO_DIGIT, NO_SHAPE, Batch

PLACE_LAYER, NAMED_LAYER, TARGET_LAYER = 2, 5, 6  # outputs of these decoder layers


class AuxiliaryHeads(nn.Module):
    thing_weight: Tensor
    digit_weight: Tensor
    centre_weight: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.colour = nn.Linear(width, NO_COLOUR + 1)
        self.shape = nn.Linear(width, NO_SHAPE + 1)
        self.digit = nn.Linear(width, 4 * (NO_DIGIT + 1))
        self.place = nn.Linear(width, 2 * IMAGE_SIDE)
        self.named = nn.Linear(width, 2 * IMAGE_SIDE)
        self.target = nn.Linear(width, 9)
        self.centre = nn.Linear(width, 2)
        # Most tokens show background: it counts less.
        self.register_buffer("thing_weight", torch.tensor([1.0] * NO_COLOUR + [0.15]), persistent=False)
        self.register_buffer("centre_weight", torch.tensor([0.1, 1.0]), persistent=False)
        self.register_buffer("digit_weight", torch.tensor([1.0] * NO_DIGIT + [0.05]), persistent=False)

    def feature_losses(self, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """From the visual features [B, V, D]; mean cross-entropies in nats, and two accuracies to watch."""
        features = _norm(features)
        shape, digit = self.shape(features).flatten(0, 1), self.digit(features).view(-1, NO_DIGIT + 1)
        shapes, digits = batch.shapes.flatten(), batch.digits.flatten()
        return {
            "colour": F.cross_entropy(self.colour(features).flatten(0, 1), batch.colours.flatten(), self.thing_weight),
            "shape": F.cross_entropy(shape, shapes, self.thing_weight),
            "digit": F.cross_entropy(digit, digits, self.digit_weight),
            "centre": F.cross_entropy(self.centre(features).flatten(0, 1), batch.centres.flatten(), self.centre_weight),
            "shape_accuracy": _accuracy(shape, shapes, NO_SHAPE),
            "digit_accuracy": _accuracy(digit, digits, NO_DIGIT),
        }

    def layer_losses(self, states: list[Tensor], visual: slice, batch: Batch) -> dict[str, Tensor]:
        """From the outputs of the decoder layers, each [B, L, D]."""
        places = torch.arange(VISUAL_TOKENS, device=batch.ids.device).repeat(len(batch.ids))
        is_named, is_target = batch.named >= 0, batch.target >= 0
        return {
            "place": _place_loss(self.place(_norm(states[PLACE_LAYER][:, visual])).flatten(0, 1), places),
            "named": _place_loss(self.named(_norm(states[NAMED_LAYER][is_named])), batch.named[is_named]),
            "target": F.cross_entropy(self.target(_norm(states[TARGET_LAYER][is_target])), batch.target[is_target]),
        }


WEIGHTS = {
    "colour": 1.0,
    "shape": 1.0,
    "digit": 1.0,
    "centre": 1.0,
    "place": 0.2,
    "named": 0.3,
    "target": 0.3,
    "gaze": 0.3,
}


def _norm(states: Tensor) -> Tensor:
    return F.rms_norm(states, (states.shape[-1],))


def _place_loss(logits: Tensor, place: Tensor) -> Tensor:
    row, column = logits.split(IMAGE_SIDE, dim=-1)
    return F.cross_entropy(row, place // IMAGE_SIDE) + F.cross_entropy(column, place % IMAGE_SIDE)


@torch.no_grad()
def _accuracy(logits: Tensor, labels: Tensor, background: int) -> Tensor:
    thing = labels != background
    return (logits[thing].argmax(-1) == labels[thing]).float().mean()
