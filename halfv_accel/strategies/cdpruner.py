"""CDPruner (Zhang et al., 2025, arXiv 2506.10967): tokens that are diverse, given what the text asks for.

The kept tokens maximise, greedily, the determinant of a conditional kernel diag(r) S diag(r): S are the cosines of the
projected visual features, r is each token's relevance to the text, scaled to [1e-6, 1] within the row. Once nothing
is left of any token beside the span of those that are kept, the most relevant of the others fill the budget (the
public code then picks whatever comes first).

The paper takes relevance from CLIP's text tower, which no model here brings along. As openvino.genai does, it is the
mean cosine of a token's features and the text's embeddings. The public code for LLaVA scales relevance over the whole
batch, so that rows influence each other; openvino.genai's default divides the tokens into two halves. Here a row is one
whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Needs, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import products
from halfv_accel.strategies.shared.greedy import SPANNED, directions, filled, most_of, volume_flops, volume_picks

LEAST = 1e-6  # relevance


@register("cdpruner")
@dataclass(frozen=True)
class CDPruner:
    """Greedy MAP of a conditional determinantal point process; a smaller budget is a subset of a larger one.

    Parameters
    ----------
    theta : float, optional
        Weight of relevance against diversity, in [0, 1): r becomes exp(alpha r), alpha = theta / (2 (1 - theta)). At 0
        relevance has no say. Left out, r is taken as it is. openvino.genai asks for 0.5.
    negative : bool
        Turn relevance round, as the public code does for CLIP's towers, whose patches are least similar to the text
        that describes them.
    """

    theta: float | None = None
    negative: bool = False

    needs: ClassVar[Needs] = Needs()
    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        theta = self.theta
        number = isinstance(theta, (int, float)) and not isinstance(theta, bool)
        if theta is not None and not (number and 0 <= theta < 1):
            raise HalfVError(f"theta is {theta!r}: give a number in [0, 1), or none to take relevance as it is")
        if not isinstance(self.negative, bool):
            raise HalfVError(f"negative is {self.negative!r}: give true or false")

    def select(self, view: View, budget: Tensor) -> Tensor:
        vectors = directions(view.states)
        relevance = self._relevance(vectors, view)
        weight = relevance if self.theta is None else _weight(relevance, self.theta)
        lengths = weight.square() * vectors.any(dim=-1)  # of unit vectors: equal ones tie, and rounding has no say
        worth = lengths.masked_fill(~view.present, -torch.inf)
        picked = volume_picks(vectors * weight[..., None], worth, budget, most_of(budget), SPANNED * lengths)
        return filled(picked, relevance, view.present, budget)

    def flops(self, sizes: Sizes) -> int:
        hidden = sizes.decoder.hidden
        return 2 * hidden * sizes.candidates + volume_flops(sizes.candidates, sizes.kept, hidden)

    def _relevance(self, vectors: Tensor, view: View) -> Tensor:
        """Mean cosine with the row's text, scaled to [1e-6, 1] in each row: [B, V]; 1 where all are the same."""
        real = view.text_present[..., None]
        text = directions(view.text_states.masked_fill(~real, 0.0)).sum(1, keepdim=True)
        text = text / real.sum(1, keepdim=True).clamp(min=1)
        cosines = products(vectors, text.mT)[..., 0]
        cosines = -cosines if self.negative else cosines
        if not cosines.shape[1]:
            return cosines
        low = cosines.masked_fill(~view.present, torch.inf).amin(1, keepdim=True)
        span = cosines.masked_fill(~view.present, -torch.inf).amax(1, keepdim=True) - low
        scaled = LEAST + (1 - LEAST) * (cosines - low) / span
        return torch.where(view.present & (span > 0), scaled, 1.0)


def _weight(relevance: Tensor, theta: float) -> Tensor:
    """exp(alpha r), over its largest value: a common factor changes no pick, and without it exp overflows."""
    return torch.exp(theta / (2 * (1 - theta)) * (relevance - 1))
