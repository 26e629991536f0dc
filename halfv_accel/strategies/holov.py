"""HoloV (Zou et al., NeurIPS 2025, arXiv 2510.02912): a share of the budget for every crop of the sequence.

The tokens of a row are cut into contiguous crops of equal size. Inside a crop, the score of a token is its attention
in the vision tower plus the variance of its cosines with the others of the crop (Eq. 1-2), scaled so that both have
one mean (Eq. 3). A crop's quota goes by the mean of its scores (Eq. 4), and it keeps its best (Eq. 5).

The public code keeps the best by attention alone, so that its weight of the variance has no effect, counts the cosine
0 that stands for the token itself into the variance, and truncates what exceeds the budget; ours follows the paper.
How what a full crop cannot take is rounded on its way to the others the paper leaves open: they get it in proportion to
their weights, by largest remainders. The paper's look back at dropped tokens in the middle of the model is not built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import cosines, taken
from halfv_accel.strategies.shared.dividing import apportion, top_k_in_groups
from halfv_accel.strategies.shared.vision_attention import (
    attention_flops,
    attention_scores,
    check_at_least,
    check_vision_layer,
)

ALIKE = 1e-12  # mean variance of cosines that are equal but for rounding


@register("holov")
@dataclass(frozen=True)
class HoloV:
    """Crops that share the budget, and inside of each attention and variety.

    Parameters
    ----------
    crops : int
        Contiguous parts of a row.
    variety : float
        Weight of the scaled variance beside attention (alpha of the public code).
    sharpness : float
        Power of a crop's mean score in its quota (tau of Eq. 4); 0 gives all crops the same.
    vision_layer : int
        The tower's layer whose attention counts.
    """

    crops: int = 16
    variety: float = 0.09
    sharpness: float = 1.0
    vision_layer: int = -2

    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        check_at_least(self.crops, 1, "crops")
        check_vision_layer(self.vision_layer)
        for name in ("variety", "sharpness"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise HalfVError(f"{name} is {value!r}: give a number that is at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer),))

    def select(self, view: View, budget: Tensor) -> Tensor:
        attention = attention_scores(view, self.vision_layer).double()
        width = attention.shape[1]
        count = view.present.sum(1, keepdim=True)
        ends = -(-torch.arange(self.crops + 1, device=count.device) * count // self.crops)  # [B, crops + 1]
        starts, sizes = ends[:, :-1], ends.diff(dim=1)
        slots = torch.arange(-(-width // self.crops), device=count.device)
        real = slots < sizes[..., None]  # [B, crops, slots]
        places = (starts[..., None] + slots).clamp(max=max(width - 1, 0)).flatten(1)

        variance = _variance(taken(view.states, places).unflatten(1, real.shape[1:]), real)
        attention = attention.gather(1, places).view_as(real) * real
        many = sizes.clamp(min=1)
        mean, spread = attention.sum(2) / many, variance.sum(2) / many
        varied = spread > ALIKE
        scale = torch.where(varied, mean / torch.where(varied, spread, 1), 0)
        scores = attention + self.variety * scale[..., None] * variance
        weights = mean * (1 + self.variety * varied)  # the mean score: scaled, variance has the mean of attention
        quotas = apportion(budget, weights**self.sharpness, sizes)

        crop = torch.arange(self.crops, device=count.device).expand_as(quotas)[..., None].expand_as(real)
        chosen = top_k_in_groups(scores.flatten(1), crop.flatten(1), quotas, real.flatten(1))
        marks = torch.zeros_like(view.present, dtype=torch.int32)
        return marks.scatter_add_(1, places, chosen.int()) > 0

    def flops(self, sizes: Sizes) -> int:
        size = -(-sizes.candidates // self.crops)
        return attention_flops(sizes) + 2 * self.crops * size**2 * sizes.decoder.hidden


def _variance(states: Tensor, real: Tensor) -> Tensor:
    """Variance of each token's cosines with the other ones of its crop: [B, crops, slots] float64; 0 if it is alone."""
    others = real[..., None] & real[..., None, :]
    others = others & ~torch.eye(real.shape[2], dtype=torch.bool, device=real.device)
    likeness = cosines(states, states).nan_to_num_(neginf=0.0).double() * others
    many = others.sum(3).clamp(min=1)
    mean = likeness.sum(3) / many
    return ((likeness - mean[..., None]) ** 2 * others).sum(3) / many
