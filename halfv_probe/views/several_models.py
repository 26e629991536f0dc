"""Several models in one picture: visual entropy over depth in percent, and layer KL below (Figures 2a and 2d).

Readable without colours: models differ in line and marker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from halfv_accel import Profile
from halfv_probe.views import tables
from halfv_probe.views.canvas import WIDE, labelled_below, literal, middle_cut, save
from halfv_probe.views.landmarks import marks
from halfv_probe.views.plots import ROUNDING_KL
from halfv_probe.views.tables import Scale

COLOURS = ("#10558c", "#b5452c", "#3d7a3a", "#7a4a91", "#8a6a00", "#2a8c8c", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")  # four lines and seven markers: 28 models before two look alike
LONGEST_NAME = 64


def plot_models(profiles: Sequence[Profile], path: Path | str, scale: Scale = "zscore") -> Path:
    """Draw the visual entropy of several models over depth, and their layer KL, on one axis in percent.

    Parameters
    ----------
    profiles : sequence of Profile
        Of any depth. A model without layer KL is missing in the lower panel only.
    path : path
        PNG, PDF or SVG; the ending decides. Written in full or not at all.
    scale : {"zscore", "nats"}
        Each curve less its mean, in its standard deviations over depth, so that shapes compare; or as it is.

    Returns
    -------
    Path
        The CSV beside the picture: one row a model and a layer boundary.

    Raises
    ------
    HalfVError
        If the ending is another one, or a file cannot be written.
    """
    inches = (WIDE, 6.6 + 0.19 * len(profiles))
    return save(path, tables.models(profiles), lambda figure: draw_models(figure, profiles, scale), inches)


def draw_models(figure: Figure, profiles: Sequence[Profile], scale: Scale = "zscore") -> None:
    """The picture of `plot_models`; no lower panel where no model has layer KL."""
    redundant = any(profile.evidence.layer_kl for profile in profiles)
    ratios = [3, 2][: 1 + redundant]
    rows = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
    panels: list[Any] = list(rows[:, 0])
    figure.suptitle(f"{len(profiles)} models over depth", fontsize=11)
    handles = [_entropy(panels[0], place, profile, scale) for place, profile in enumerate(profiles)]
    for handle, name, profile in zip(handles, tables.labels(profiles), profiles, strict=True):
        size = f"{profile.model.num_layers} layers, k = {profile.evidence.k}"
        handle.set_label(f"{literal(middle_cut(name, LONGEST_NAME))} ({size})")
    unit = "nats" if scale == "nats" else "standard deviations\nfrom the curve's own mean"
    panels[0].set_ylabel(f"entropy of visual tokens\n({unit})")
    panels[0].set_xlim(-1.5, 101.5)
    panels[0].set_xticks(range(0, 101, 10))
    handles.append(_note("filled: layers at which the plan acts", marker="o", color="black"))
    if redundant:
        _redundancy(panels[1], profiles)
        handles.append(_note("on the lower edge: KL is 0"))
    panels[-1].set_xlabel("depth (% of the decoder's layers; 0: its input, 100: its output)")
    labelled_below(figure, handles, columns=1)


def _entropy(axes: Any, place: int, profile: Profile, scale: Scale) -> Line2D:
    """One curve, its markers filled where the plan acts."""
    curve, last = profile.evidence.entropy["visual"], profile.model.num_layers
    centre, unit = tables.centre_and_unit(curve, scale)
    depth, values = [100 * boundary / last for boundary in range(last + 1)], [(y - centre) / unit for y in curve]
    look = _look(place)
    [line] = axes.plot(depth, values, markevery=max(1, last // 24), **look)
    layers = [layer for layer, _ in marks(profile)]
    filled = dict(look, linestyle="none", markerfacecolor=look["color"], markersize=8, zorder=3)
    axes.plot([depth[layer] for layer in layers], [values[layer] for layer in layers], **filled)
    return line


def _redundancy(axes: Any, profiles: Sequence[Profile]) -> None:
    """Layer KL on a log axis; what is 0, but for rounding, has no place there and lies on the lower edge."""
    found = [value for profile in profiles for value in profile.evidence.layer_kl if value > ROUNDING_KL]
    floor = min(found, default=1e-6) / 3
    for place, profile in enumerate(profiles):
        curve, last = profile.evidence.layer_kl, profile.model.num_layers
        depth = [100 * layer / last for layer in range(len(curve))]
        shown = [value if value > ROUNDING_KL else math.nan for value in curve]
        axes.plot(depth, shown, markevery=max(1, last // 24), **_look(place))
        none = [x for x, value in zip(depth, curve, strict=True) if value <= ROUNDING_KL]
        if none:  # an empty line that is not clipped would count as one that reaches to the page's corner
            axes.plot(none, [floor] * len(none), clip_on=False, **dict(_look(place), linestyle="none", zorder=3))
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.set_ylabel("KL of the next token,\none layer's visual\nupdates off (nats)")


def _look(place: int) -> dict[str, Any]:
    colour = COLOURS[place % len(COLOURS)]
    line, marker = LINES[place % len(LINES)], MARKERS[place % len(MARKERS)]
    return dict(color=colour, linestyle=line, marker=marker, markersize=4.5, markerfacecolor="white", linewidth=1.5)


def _note(text: str, **style: Any) -> Line2D:
    """A legend entry that explains a mark."""
    return Line2D([], [], linestyle="none", label=text, **style)
