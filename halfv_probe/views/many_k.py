"""The curves for several numbers of eigenvalues, one panel a number (Figures 12 to 14): do the stages hang on k?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from halfv_accel import HalfVError, Profile
from halfv_probe.views import tables
from halfv_probe.views.canvas import WIDE, labelled_below, middle_cut, save
from halfv_probe.views.landmarks import marks
from halfv_probe.views.plots import DOTTED, entropy_panel, stage_handles
from halfv_probe.views.tables import Scale


def plot_many_k(profile: Profile, ks: Sequence[int], path: Path | str, scale: Scale = "nats") -> Path:
    """Draw the curves of visual, text and all tokens for each number of eigenvalues.

    Parameters
    ----------
    profile : Profile
    ks : sequence of int
        Of those that the profile holds: its own k, and the keys of ``evidence.entropy_by_k``. One panel each.
    path : path
        PNG, PDF or SVG; the ending decides. Written in full or not at all.
    scale : {"nats", "zscore"}
        As in `plot_entropy`.

    Returns
    -------
    Path
        The CSV beside the picture: one row a k and a layer boundary.

    Raises
    ------
    HalfVError
        If the profile lacks one of the ks, the ending is another one, or a file cannot be written.
    """
    ks = list(dict.fromkeys(ks))
    check_ks(profile, ks)
    numbers = tables.entropy_by_k(profile)
    numbers = numbers[numbers["k"].isin(ks)]
    inches = (WIDE, 1.5 + 2.5 * math.ceil(len(ks) / _columns(ks)))
    return save(path, numbers, lambda figure: draw_many_k(figure, profile, ks, scale), inches)


def check_ks(profile: Profile, ks: Sequence[int]) -> None:
    """Refuse numbers of eigenvalues for which the profile has no curves.

    Raises
    ------
    HalfVError
    """
    there = sorted(tables.curves_by_k(profile))
    missing = [k for k in ks if k not in there]
    if missing:
        name = profile.model.id
        raise HalfVError(
            f"the profile has no curves for k = {_listed(missing)}, only for {_listed(there)}: give one of these, or "
            f"calibrate again with: halfv calibrate --model {name} --k {missing[0]}"
        )


def draw_many_k(figure: Figure, profile: Profile, ks: Sequence[int], scale: Scale = "nats") -> None:
    """The picture of `plot_many_k`."""
    columns = _columns(ks)
    panels = figure.subplots(math.ceil(len(ks) / columns), columns, squeeze=False)
    figure.suptitle(middle_cut(profile.model.id, 60), fontsize=11, parse_math=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(ks):
            axes.axis("off")
            continue
        curve = tables.curves_by_k(profile)[ks[place]]["visual"][0]
        entropy_panel(axes, profile, ks[place], scale)
        axes.set_title(f"k = {ks[place]}: visual entropy {_lowest(curve)}", fontsize=9, loc="left")
        axes.set_ylabel("entropy (nats)" if scale == "nats" else "entropy (standard deviations)")
        if place + columns >= len(ks):  # nothing is drawn below
            axes.set_xlabel("decoder layer (its input)")
    handles: list[Any] = [*panels[0, 0].get_legend_handles_labels()[0], *stage_handles(profile)]
    if profile.evidence.k in ks:
        handles += panels.flat[ks.index(profile.evidence.k)].get_legend_handles_labels()[0]
    if marks(profile):
        acts = ", ".join(str(layer) for layer, _ in marks(profile))
        handles.append(
            Line2D([], [], color="black", linewidth=1, linestyle=DOTTED, label=f"the plan acts: layer {acts}")
        )
    labelled_below(figure, handles, columns=3)


def _columns(ks: Sequence[int]) -> int:
    return 1 if len(ks) == 1 else 2


def _lowest(curve: Sequence[float]) -> str:
    """Where a curve over boundaries has its valley, in layers and in percent of the depth."""
    place, last = min(range(len(curve)), key=curve.__getitem__), len(curve) - 1
    where = "at the output" if place == last else f"before layer {place} ({place / last:.0%})"
    return f"lowest {where}"


def _listed(ks: Sequence[int]) -> str:
    return ", ".join(map(str, ks))
