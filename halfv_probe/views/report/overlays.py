"""Which visual tokens a profile keeps on real pictures, and how they lie in the space they were chosen in (Figure 7).

A picture of kept patches claims to know where each visual token comes from. For two builds that is certain: Qwen's
merged grid, and LLaVA-1.5's single grid of patches; there token r is patch r in raster order, which is checked against
the number of tokens. Every other layout (tiles and row ends of LLaVA-NeXT, frames of Video-LLaVA, class tokens) is
shown as a strip of tokens in reading order instead: no picture at all is better than a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from halfv_accel import HalfVError, Profile, accelerate
from halfv_accel.adapters import Family, family_of
from halfv_accel.budget import floor_share
from halfv_accel.plan import Then
from halfv_accel.prompts import batch_inputs
from halfv_accel.strategies import LastTokenAttention, Strategy, View
from halfv_probe.trials.prompts import AskedPicture, turn

MERGED_GRIDS = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)
SINGLE_GRID = "LlavaForConditionalGeneration"


@dataclass(frozen=True)
class KeptBy:
    """What one stage left: ``kept`` is bool [V], in the order of the visual tokens; a freeze keeps none active."""

    name: str
    layer: int
    then: Then
    kept: np.ndarray


@dataclass(frozen=True)
class TokenMap:
    """One picture's visual tokens on their way through an accelerated prefill.

    Parameters
    ----------
    question : str
    image : PIL.Image or None
        What the model is given, cropped and scaled as the grid lies on it; None where the geometry is not certain.
    grid : (rows, columns) or None
        Of the visual tokens on `image`; rows * columns = V.
    stages : list of KeptBy
    anchors : (V,) bool array
        Kept for relevance (Eq. 4, first term); what IVR keeps beside them it keeps for coverage (Eq. 5).
    plane : (V, 2) array or None
        The two main axes of the tokens' directions (L2-normalised hidden states) at the IVR layer, by PCA; None if
        nothing had to be chosen.
    explained : float
        Share of the variance that the plane shows.
    """

    question: str
    image: Image.Image | None
    grid: tuple[int, int] | None
    stages: list[KeptBy]
    anchors: np.ndarray
    plane: np.ndarray | None
    explained: float = 0.0

    def frame(self) -> pd.DataFrame:
        """One row a visual token; row and column are missing where the geometry is not certain, as is the plane."""
        tokens = pd.Series(range(len(self.anchors)), dtype="Int64")
        nowhere = pd.Series([pd.NA] * len(tokens), dtype="Int64")
        columns = {
            "visual_token": tokens.astype("int64"),
            "row": tokens // self.grid[1] if self.grid else nowhere,
            "column": tokens % self.grid[1] if self.grid else nowhere,
            "anchor": self.anchors.astype("int64"),
        }
        columns |= {f"active_after_{stage.name}": stage.kept.astype("int64") for stage in self.stages}
        first, second = (np.nan, np.nan) if self.plane is None else self.plane.T
        return pd.DataFrame(columns | {"pca_1": first, "pca_2": second})


@torch.no_grad()
def map_tokens(
    model: PreTrainedModel, processor: Any, samples: Iterable[AskedPicture], profile: Profile
) -> list[TokenMap]:
    """Run samples through the accelerated model, one prefill each, and see what becomes of their visual tokens.

    Parameters
    ----------
    model : PreTrainedModel
        The profile's; it is left as it was.
    processor : ProcessorMixin
    samples : iterable
        With ``images`` (PIL) and ``question``; tokens are drawn on a sample's picture where it has one only.
    profile : Profile

    Raises
    ------
    HalfVError
        If the model is another than the profile's, or cannot be accelerated.
    """
    profile.check(model)
    family, plan = family_of(model), profile.plan()
    maps = []
    for sample in samples:
        pictures, question, video = turn(sample)
        inputs = batch_inputs(processor, [(pictures, question, video)], model.device)
        watch = _Watch(plan.stages[0].strategy, profile.halfv[0].anchor_ratio)
        stages = (replace(plan.stages[0], strategy=watch), *plan.stages[1:])
        with accelerate(model, replace(plan, stages=stages)) as run:
            model(**inputs, logits_to_keep=1)
        if run.last is None:
            raise HalfVError(f"no prefill was seen for {sample.question!r}: give a model that runs its decoder whole")
        visual = family.visual_positions(inputs["input_ids"])[0].cpu()
        kept = [mask[0].cpu()[visual].numpy() for mask in run.last.kept]
        left = [KeptBy(s.name, s.layer, s.then, mask) for s, mask in zip(run.last.stages, kept, strict=True)]
        alone = len(pictures) == 1 and video is None  # several pictures have no one grid
        count = int(visual.sum())
        image, grid = locate(family, processor, inputs, pictures[0], count) if alone else (None, None)
        maps.append(TokenMap(sample.question, image, grid, left, *watch.found(count)))
    return maps


def locate(
    family: Family, processor: Any, inputs: Mapping[str, Any], image: Image.Image, count: int
) -> tuple[Image.Image | None, tuple[int, int] | None]:
    """The picture as the model is given it, and the rows and columns of its visual tokens; (None, None) if unsure.

    Parameters
    ----------
    inputs : mapping
        Processor outputs for this one picture.
    count : int
        Visual tokens in the prompt.
    """
    if family.architecture in MERGED_GRIDS and "image_grid_thw" in inputs:
        frames, rows, columns = inputs["image_grid_thw"][0].tolist()
        merge = family.model.config.vision_config.spatial_merge_size
        grid, seen = (rows // merge, columns // merge), image.convert("RGB")  # resized as a whole, never cropped
        if len(inputs["image_grid_thw"]) != 1 or frames != 1:
            return None, None
    elif family.architecture == SINGLE_GRID and inputs["pixel_values"].shape[:2] == (1, 3):
        patch = getattr(family.model.config.vision_config, "patch_size", None)
        height, width = inputs["pixel_values"].shape[2:]
        if not isinstance(patch, int) or height % patch or width % patch:
            return None, None
        grid, seen = (height // patch, width // patch), _pixels(processor, inputs["pixel_values"][0])
    else:
        return None, None
    return (seen, grid) if grid[0] * grid[1] == count else (None, None)


def main_plane(states: Tensor) -> tuple[np.ndarray, float]:
    """PCA of [V, H] on two axes: coordinates [V, 2] and the share of variance that they show.

    Signs are fixed, so that equal states give equal pictures: the largest coordinate on each axis is positive.
    """
    centred = states.double().cpu() - states.double().cpu().mean(dim=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        directions = torch.pca_lowrank(centred, q=min(8, *centred.shape), center=False, niter=12)[2][:, :2]
    plane = F.pad(centred @ directions, (0, 2 - directions.shape[1]))
    total = float(centred.square().sum())
    explained = float(plane.square().sum()) / total if total > 0 else 1.0
    extremes = plane.gather(0, plane.abs().argmax(dim=0, keepdim=True))
    return (plane * torch.where(extremes < 0, -1.0, 1.0)).numpy(), explained


@dataclass(frozen=True)
class _Watch:
    """The plan's own strategy, and a look at what it chose among."""

    inner: Strategy
    anchor_ratio: float
    _seen: list[tuple[np.ndarray, Tensor]] = field(default_factory=list, compare=False)

    def select(self, view: View, budget: Tensor) -> Tensor:
        anchors = torch.tensor([floor_share(int(count), self.anchor_ratio) for count in budget], device=budget.device)
        ranked = LastTokenAttention(rotary=False).select(view, anchors)  # AnchorCover's first step, on its own
        self._seen.append((ranked[0].cpu().numpy(), F.normalize(view.states[0].float(), dim=-1)))
        return self.inner.select(view, budget)

    def found(self, count: int) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Anchors, plane and share of variance; nothing is known where all tokens were kept without a choice."""
        if not self._seen:
            return np.zeros(count, dtype=bool), None, 0.0
        anchors, states = self._seen[-1]
        return anchors, *main_plane(states)


def _pixels(processor: Any, values: Tensor) -> Image.Image:
    """What the vision tower is given, as a picture again."""
    settings = processor.image_processor
    pixels = values.float().cpu()
    if settings.do_normalize:
        mean, std = (torch.tensor(list(getattr(settings, name)))[:, None, None] for name in ("image_mean", "image_std"))
        pixels = pixels * std + mean
    if settings.do_rescale:
        pixels = pixels / settings.rescale_factor
    return Image.fromarray(pixels.permute(1, 2, 0).round().clamp(0, 255).byte().numpy(), "RGB")
