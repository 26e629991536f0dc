"""HiRED (Arif et al., AAAI 2025, arXiv 2408.10945): a share for the whole picture, the rest for its crops.

A picture that comes with crops of itself (LLaVA-NeXT) keeps a share of its budget in the whole view (Algorithm 1). The
rest is divided among the crops by the attention that the first layer of the tower pays to their regions of the whole
view (Eq. 1), and each part keeps its tokens of highest attention in a deep layer (Eq. 2). A picture of one part keeps
those of highest attention, and several pictures divide a row's budget by their numbers of tokens.

The public code counts the 100 tokens of highest attention in each region in place of Eq. 1's sums, and loses what
rounding or a full part leaves over; ours sums, and meets the budget by largest remainders. There regions split the
whole view evenly, though LLaVA-NeXT cuts off what shows no picture; here a token of the whole view counts to the crop
that shows the same place of the picture, which is the same where nothing is cut off.

Frames of a video look like crops: its first one is taken for the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from halfv_accel.strategies.protocol import Needs, Places, Separators, Sizes, View
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.dividing import apportion, pictures_and_parts, top_k_in_groups
from halfv_accel.strategies.shared.shares import check_share
from halfv_accel.strategies.shared.vision_attention import attention_flops, attention_scores, check_vision_layer


@register("hired")
@dataclass(frozen=True)
class HiRED:
    """Tokens of highest attention in each crop, as many as its region of the picture deserves.

    Parameters
    ----------
    whole : float
        Share of a picture's budget that stays in its whole view, rounded down (alpha); crops get the rest.
    vision_layer : int
        The tower's layer whose attention ranks tokens: 22 of 24 in the paper, counted from 0.
    region_layer : int
        The tower's layer whose attention to the whole view says what a crop's region holds.
    """

    whole: float = 0.5
    vision_layer: int = -2
    region_layer: int = 0

    separators: ClassVar[Separators] = "last"

    def __post_init__(self) -> None:
        check_share("whole", self.whole)
        check_vision_layer(self.vision_layer)
        check_vision_layer(self.region_layer, "region_layer")

    @property
    def needs(self) -> Needs:
        return Needs(vision=(("attention", self.vision_layer), ("attention", self.region_layer)), structure=True)

    def select(self, view: View, budget: Tensor) -> Tensor:
        if not view.present.numel():
            return view.present
        places = view.places
        places = replace(places, part=places.part.masked_fill(places.video, 0))  # frames are no crops of a whole
        groups, sizes = pictures_and_parts(places, view.present)
        regions = _regions(places, view.present, groups, sizes)
        held = torch.zeros(sizes.shape, dtype=torch.float64, device=sizes.device)
        shallow = attention_scores(view, self.region_layer).double().masked_fill(~view.present, 0)
        held.flatten(1).scatter_add_(1, regions, shallow * (places.part == 0))
        quotas = self._quotas(budget, sizes, held)
        deep = attention_scores(view, self.vision_layer)
        return top_k_in_groups(deep, groups, quotas.flatten(1), view.present)

    def _quotas(self, budget: Tensor, sizes: Tensor, held: Tensor) -> Tensor:
        """Tokens to keep of each part: like `sizes`."""
        whole, crops = sizes[..., 0].flatten(), sizes[..., 1:].flatten(0, 1)
        picture = apportion(budget, sizes.sum(2), sizes.sum(2)).flatten()
        share = torch.floor(picture.double() * self.whole + 1e-9).long()  # see floor_share
        share = torch.minimum(torch.maximum(share, picture - crops.sum(1)), whole)
        rest = apportion(picture - share, held[..., 1:].flatten(0, 1), crops)
        return torch.cat([share[:, None], rest], dim=1).view_as(sizes)

    def flops(self, sizes: Sizes) -> int:
        return 2 * attention_flops(sizes)


def _regions(places: Places, present: Tensor, groups: Tensor, sizes: Tensor) -> Tensor:
    """The crop that shows the place of each token of a whole view, as in `groups`; anything for other tokens.

    The tokens of all crops stand row by row of the picture that they make up.
    """
    count = sizes[..., 1:].sum(2)
    picture, index = groups // sizes.shape[2], torch.arange(present.shape[1], device=present.device).expand_as(groups)
    crop, whole = (present & mask for mask in (places.part > 0, places.part == 0))

    def least(values: Tensor, of: Tensor, otherwise: int) -> Tensor:
        """For each picture, of those of its tokens that are marked."""
        found = torch.full(count.shape, otherwise, device=count.device)
        return found.scatter_reduce_(1, picture, values.where(of, otherwise), "amin")

    def each(values: Tensor) -> Tensor:
        """For each token, that of its picture."""
        return values.gather(1, picture)

    end = present.shape[1]
    first = least(index, crop, end)
    row = each(places.row.gather(1, first.clamp(max=end - 1)))
    width = (least(index, crop & (places.row != row), end) - first).clamp(min=1)
    width = torch.minimum(width, count.clamp(min=1))
    down, across = (1 - least(-x, whole, 0) for x in (places.row, places.column))
    line = (2 * places.row + 1) * each(count // width) // (2 * each(down))
    column = (2 * places.column + 1) * each(width) // (2 * each(across))
    there = each(first) + torch.minimum(line * each(width) + column, each(count) - 1)
    return torch.where(each(count) > 0, groups.gather(1, there.clamp(0, end - 1)), groups)
