"""Where on the depth axis something begins: the stages of the curve, and the layers at which the plan acts."""

from __future__ import annotations

from dataclasses import dataclass

from halfv_accel import Profile

GREYS = ("#ffffff", "#efefef", "#dcdcdc")


@dataclass(frozen=True)
class Band:
    """One stage: boundaries `start` to `end`, so layers `start` to `end - 1`."""

    numeral: str
    name: str
    start: int
    end: int
    grey: str

    @property
    def label(self) -> str:
        layers = f"layer {self.start}" if self.end == self.start + 1 else f"layers {self.start} to {self.end - 1}"
        return f"{self.numeral} {self.name}: {layers}"


def bands(profile: Profile) -> list[Band]:
    """The stages as the entropy curve parts them; none where it shows none.

    A plan may act elsewhere, because trials decide about it. Profiles of version 1.0 do not hold what the curve alone
    said, and there the plan's layers part the stages.
    """
    if not profile.evidence.stable:
        return []
    curve, last = profile.evidence.curve_only, profile.model.num_layers
    planned = None if profile.ivr is None or profile.ssr is None else profile.halfv
    first = curve.get("ivr", planned and planned[0].layer)
    second = curve.get("ssr", planned and planned[1].layer)
    if first is None or second is None or not 0 < first <= second < last:
        if planned is None:  # another method's layers are no bounds of stages
            return []
        first = planned[0].layer
        return [Band("I", "alignment", 0, first, GREYS[0]), Band("II, III", "behind it", first, last, GREYS[1])]
    names = (("I", "alignment"), ("II", "aggregation"), ("III", "saturation"))
    ends = (0, first, second, last)
    found = [Band(*names[i], ends[i], ends[i + 1], GREYS[i]) for i in range(3)]
    return [band for band in found if band.end > band.start]


def marks(profile: Profile) -> list[tuple[int, str]]:
    """The layers on whose input tokens are reduced, and what happens there."""
    if profile.ivr is None:
        return [(stage.layer, f"{stage.name}: {percent(stage.retention)} kept") for stage in profile.plan().stages]
    ivr, ssr = profile.halfv
    found = []
    if ivr.retention < 1 or ssr.layer is None:  # else the plan has no first stage
        found.append((ivr.layer, f"IVR {ivr.layer}: {percent(ivr.retention)} kept"))
    if ssr.layer is not None:
        what = f"{percent(ssr.retention)} kept" if ssr.mode == "sparse" and ssr.retention else str(ssr.mode)
        found.append((ssr.layer, f"SSR {ssr.layer}: {what}"))
    return found


def percent(share: float) -> str:
    """A share for people, to a tenth; "nearly all" is never rounded to all, nor "hardly any" to none.

    >>> percent(0.125), percent(0.61), percent(0.9999), percent(0.0001)
    ('12.5%', '61%', '99.9%', '<0.1%')
    """
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{min(round(share * 100, 1), 99.9 if share < 1 else share * 100):g}%"
