"""Where visual tokens are in what they show, and which entry of the vision tower's output each of them is.

A family says of one picture or video in which order its tokens stand in the prompt (`Family.pictures`). Here the
pictures of a batch are laid along its placeholders, in the order in which the model itself scatters features. Nothing
is measured: sizes are enough. They are worked out on the host, and go to the device in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Places

if TYPE_CHECKING:
    from halfv_accel.adapters.base import Family

PART, SOURCE = 0, 3  # columns of a picture's table; row and column stand between them
CLS = ("class_embedding", "cls_token")  # parameters of towers that begin a picture with a token of its own


@dataclass(frozen=True)
class Picture:
    """The visual tokens of one picture or video, in the order of the prompt.

    Parameters
    ----------
    table : (n, 4) long Tensor
        Part, row, column and source of each token, on the host. A separator has no row, column or source: -1.
    sources : int
        Tokens that the tower makes of it. There may be more than the prompt shows, as LLaVA-NeXT cuts off borders.
    """

    table: Tensor
    sources: int


@dataclass(frozen=True)
class Structure:
    """Where the tokens of a batch are in its pictures; -1 and False where there is no visual token.

    Parameters
    ----------
    places : Places
        Each [B, S].
    source : (B, S) long Tensor
        The token's place among all tokens that the tower made for this batch: pictures first, then videos, each with
        parts in order, rows in order, and from left to right. -1 for separators.
    sources : int
        How many the tower made.
    """

    places: Places
    source: Tensor
    sources: int

    def at(self, index: Tensor, present: Tensor) -> Structure:
        """The structure of some positions of each row.

        Parameters
        ----------
        index : (B, V) long Tensor
            Positions.
        present : (B, V) bool Tensor
            False for padding, which shows nothing.
        """
        found = {field.name: getattr(self.places, field.name).gather(1, index) for field in fields(Places)}
        flags = {name: part & present for name, part in found.items() if part.dtype == torch.bool}
        numbers = {name: part.masked_fill(~present, -1) for name, part in found.items() if name not in flags}
        source = self.source.gather(1, index).masked_fill(~present, -1)
        return Structure(Places(**{**flags, **numbers}), source, self.sources)


def structure_of(family: Family, input_ids: Tensor, arguments: Mapping[str, Any]) -> Structure:
    """The structure of a forward's visual tokens.

    Parameters
    ----------
    input_ids : (B, S) long Tensor
    arguments : mapping
        Of the core's forward, by name, with the sizes of its pictures. `generate` encodes pictures before, and hands
        on no sizes: `VisionRecorder.begin` puts them back.

    Raises
    ------
    HalfVError
        If the sizes are missing, or tell of other tokens than the prompt has.
    """
    carried = family.modalities(arguments)
    kinds = [modality for modality in family.pixels if modality in carried]
    pictures = [family.pictures(modality, arguments) for modality in kinds]
    tables = [_joined(group, before) for group, before in zip(pictures, _before(pictures), strict=True)]
    masks = [family.visual_positions(input_ids, [modality]) for modality in kinds]
    copies = _copies(masks, [len(table) for table in tables], arguments)
    laid = _lay([mask[::copies] for mask in masks], tables, input_ids[::copies])
    first, part, row, column, source = laid.repeat_interleave(copies, dim=0).unbind(-1)
    visual = first >= 0
    picture = (first == 1).cumsum(1).sub(1).masked_fill(~visual, -1)
    videos = family.visual_positions(input_ids, carried & {"video"})
    places = Places(picture, part, row, column, visual & (row < 0), visual & videos)
    return Structure(places, source, sum(picture.sources for group in pictures for picture in group))


def _before(pictures: Sequence[Sequence[Picture]]) -> list[int]:
    """Entries of the tower's output in front of those of each modality."""
    sizes = [sum(picture.sources for picture in group) for group in pictures]
    return [sum(sizes[:index]) for index in range(len(sizes))]


def _joined(pictures: Sequence[Picture], before: int) -> Tensor:
    """One table of all pictures of a modality [n, 5], with a column in front that is 1 where a picture begins."""
    tables = [torch.empty(0, 5, dtype=torch.long)]
    for picture in pictures:
        table = nn.functional.pad(picture.table, (1, 0))
        table[:1, 0] = 1
        table[:, SOURCE + 1] += before * (table[:, SOURCE + 1] >= 0)
        tables.append(table)
        before += picture.sources
    return torch.cat(tables)


def _copies(masks: Sequence[Tensor], tokens: Sequence[int], arguments: Mapping[str, Any]) -> int:
    """How often each row stands in the batch: `generate` repeats rows for beams after it has encoded their pictures."""
    if not masks:
        return 1
    found = torch.stack([mask.sum() for mask in masks]).tolist()
    copies = max((have // want for have, want in zip(found, tokens, strict=True) if want), default=1)
    expanded = copies == 1 or (arguments.get("mm_encoder_outputs") and len(masks[0]) % max(copies, 1) == 0)
    if not expanded or found != [copies * want for want in tokens]:
        raise HalfVError(
            f"the prompt has places for {sum(found)} visual tokens, and its pictures make {sum(tokens)}: "
            "give the model what the processor made of prompt and pictures together"
        )
    return copies


def _lay(masks: Sequence[Tensor], tables: Sequence[Tensor], input_ids: Tensor) -> Tensor:
    """The rows of the tables along the places of the masks, in the order of the batch: [B, S, 5]; elsewhere -1."""
    laid = torch.full((*input_ids.shape, 5), -1, device=input_ids.device)
    parts = torch.cat([*tables, laid.new_empty(0, 5).cpu()]).to(input_ids.device)
    for mask, table in zip(masks, parts.split([len(table) for table in tables]), strict=False):
        if len(table):
            order = mask.flatten().cumsum(0).sub(1).clamp(min=0).view_as(mask)
            laid = torch.where(mask[..., None], table[order], laid)
    return laid


def raster(parts: int, rows: int, columns: int) -> Tensor:
    """The table of parts of one size, as the tower makes them: [parts, rows * columns, 4]."""
    places = torch.cartesian_prod(torch.arange(parts), torch.arange(rows), torch.arange(columns))
    source = torch.arange(len(places))[:, None]
    return torch.cat([places, source], dim=1).view(parts, rows * columns, 4)


def with_cls(table: Tensor) -> Tensor:
    """The same with a CLS token in front of each part, which shows nothing."""
    token = torch.full_like(table[:, :1], -1)
    token[..., PART] = table[:, :1, PART]
    return torch.cat([token, table], dim=1)


def has_cls(tower: nn.Module) -> bool:
    """Does a tower put a CLS token in front of the patches of a picture?"""
    return any(name.rpartition(".")[2] in CLS for name, _ in tower.named_parameters())


def square_parts(tower: Any, parts: int, strategy: str) -> Tensor:
    """The table of parts that a tower of one picture size makes of them, as the projector gets them: [parts, n, 4].

    Parameters
    ----------
    strategy : {"default", "full"}
        `vision_feature_select_strategy`: "default" leaves out the first token, which is CLS where there is one.
    """
    side = tower.config.image_size // tower.config.patch_size
    table = raster(parts, side, side)
    table = with_cls(table) if has_cls(tower) else table
    return table[:, 1:] if strategy == "default" else table


def strategy_of(family: Family, arguments: Mapping[str, Any]) -> str:
    """`vision_feature_select_strategy` of a forward."""
    asked = arguments.get("vision_feature_select_strategy")
    return asked or family.model.config.vision_feature_select_strategy


def count_of(family: Family, modality: str, arguments: Mapping[str, Any]) -> int:
    """Pictures of a forward, by its pixels, or by its features where it got those instead."""
    pixels = next((arguments[name] for name in family.pixels[modality] if arguments.get(name) is not None), None)
    return len(pixels if pixels is not None else arguments["mm_encoder_outputs"][modality].pooler_output)


def size_of(family: Family, name: str, arguments: Mapping[str, Any]) -> Any:
    """Sizes of pictures, by the name of the argument, which stands beside encoded pictures only if a user put it there.

    Raises
    ------
    HalfVError
    """
    value = arguments.get(name)
    if value is None:
        raise HalfVError(
            f"this plan asks where visual tokens are in their pictures, and {name} is missing: give the model "
            f"{name} beside encoded pictures, or pixels instead of these"
        )
    return value
