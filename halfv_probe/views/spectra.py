"""The spectrum of visual tokens over depth: as lines in space (Figure 2c), as a map, and flat at a few layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from halfv_accel import HalfVError, Profile
from halfv_probe.views import tables
from halfv_probe.views.canvas import WIDE, labelled_below, layer_ticks, middle_cut, save
from halfv_probe.views.landmarks import marks

SMALLEST_SHARE = 1e-6  # eigenvalues below are drawn as this
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")


def plot_spectrum(profile: Profile, path: Path | str) -> Path:
    """Draw each layer's eigenvalues as a line in space, and a few layers' flat on a log axis beside it (Figure 2c).

    Parameters
    ----------
    profile : Profile
    path : path
        PNG, PDF or SVG; the ending decides. Written in full or not at all.

    Returns
    -------
    Path
        The CSV beside the picture: one row a layer boundary, one column an eigenvalue.

    Raises
    ------
    HalfVError
        If the profile has no spectrum, the ending is another one, or a file cannot be written.
    """
    if not has_spectrum(profile):
        name = profile.model.id
        raise HalfVError(f"the profile holds no spectrum: calibrate again with: halfv calibrate --model {name}")
    return save(path, tables.spectrum(profile), lambda figure: draw_spectrum_lines(figure, profile), (WIDE + 1.5, 4.8))


def has_spectrum(profile: Profile) -> bool:
    """Was the spectrum measured at every boundary?"""
    return bool(profile.evidence.spectrum) and all(profile.evidence.spectrum)


def draw_spectrum_lines(figure: Figure, profile: Profile) -> None:
    """The picture of `plot_spectrum`."""
    figure.suptitle(middle_cut(profile.model.id, 60), fontsize=11, parse_math=False)
    grid = figure.add_gridspec(1, 2, width_ratios=[1.2, 1])
    _in_space(figure.add_subplot(grid[0], projection="3d"), profile)
    flat: Any = figure.add_subplot(grid[1])
    _flat(flat, profile)
    flat.yaxis.tick_right()
    flat.yaxis.set_label_position("right")  # on the left, the other panel's label stands
    labelled_below(figure, flat.get_legend_handles_labels()[0], columns=5)


def draw_spectrum(figure: Figure, profile: Profile) -> None:
    """A map of all boundaries above, four of them as curves below; for a narrow column."""
    panels: Any = figure.subplots(2, 1, height_ratios=[1.1, 1])
    _map(panels[0], profile)
    _flat(panels[1], profile)
    labelled_below(figure, panels[1].get_legend_handles_labels()[0], columns=2)


def _in_space(axes: Any, profile: Profile) -> None:
    """Eigenvalue by layer by share, on plain axes, where the elbow shows; layers at which the plan acts are black."""
    evidence, last = profile.evidence, profile.model.num_layers
    longest = max(map(len, evidence.spectrum))
    shown = min(longest, max(3 * evidence.k, 12))
    acts = [layer for layer, _ in marks(profile)]
    for layer in reversed(range(last + 1)):  # the nearest last
        shares = evidence.spectrum[layer][:shown]
        strong = layer in acts
        style = dict(color="black" if strong else _shade(layer, last), linewidth=1.6 if strong else 0.9)
        axes.plot(range(1, len(shares) + 1), [layer] * len(shares), shares, zorder=last - layer, **style)
    axes.plot([evidence.k + 0.5] * 2, [0, last], [0, 0], color="black", linewidth=0.8, linestyle="--")
    axes.view_init(elev=24, azim=-58)
    layers, names = layer_ticks(last)
    fewer = math.ceil(len(layers) / 7)  # aslant, there is less room for numbers
    axes.set_yticks([*layers[:-1:fewer], last], [*names[:-1:fewer], "out"])
    axes.tick_params(labelsize=8, pad=0)
    rest = "" if shown == longest else f" ({shown} of {longest})"
    axes.set(xlabel=f"eigenvalue{rest}", ylabel="decoder layer (its input)", zlabel="share of the sum")
    axes.set_box_aspect((1, 1.3, 0.85), zoom=1.05)


def _shade(layer: int, last: int) -> tuple[float, float, float]:
    """From dark blue at the input to light blue at the output."""
    start, end = np.array((0.06, 0.33, 0.55)), np.array((0.60, 0.76, 0.88))
    red, green, blue = start + (end - start) * layer / last
    return float(red), float(green), float(blue)


def _map(axes: Any, profile: Profile) -> None:
    """One column a boundary, one row an eigenvalue, shares on a log scale."""
    evidence, last = profile.evidence, profile.model.num_layers
    longest = max(map(len, evidence.spectrum))
    shares = np.full((longest, last + 1), np.nan)
    for layer, row in enumerate(evidence.spectrum):
        shares[: len(row), layer] = np.maximum(row, SMALLEST_SHARE)
    norm = LogNorm(np.nanmin(shares), np.nanmax(shares) * (1 + 1e-9))
    edges = np.arange(last + 2) - 0.5, np.arange(longest + 1) + 0.5
    image = axes.pcolormesh(*edges, shares, norm=norm, cmap="cividis", rasterized=True)
    if evidence.k < longest:
        axes.axhline(evidence.k + 0.5, color="white", linewidth=1.2, linestyle="--")
    for layer, _ in marks(profile):
        axes.axvline(layer, color="white", linewidth=1.2, linestyle=(0, (1, 1.5)))
    axes.invert_yaxis()
    axes.set_xticks(*layer_ticks(last))
    axes.set(xlabel="decoder layer (its input)", ylabel="eigenvalue, largest first")
    axes.figure.colorbar(image, ax=axes, label="share of the sum")


def _flat(axes: Any, profile: Profile) -> None:
    """The input, the output, and the layers at which the plan acts, as curves on a log axis."""
    evidence, last = profile.evidence, profile.model.num_layers
    longest = max(map(len, evidence.spectrum))
    for style, layer in enumerate(sorted({0, last, *(layer for layer, _ in marks(profile))})):
        name = "output" if layer == last else f"input of layer {layer}"
        curve = np.maximum(evidence.spectrum[layer], SMALLEST_SHARE)
        line = dict(linestyle=LINES[style], marker=MARKERS[style], markevery=max(1, longest // 8), markersize=4)
        axes.plot(range(1, len(curve) + 1), curve, label=name, linewidth=1.4, **line)
    axes.axvline(evidence.k + 0.5, color="black", linewidth=0.8, linestyle="--", label=f"behind k = {evidence.k}")
    axes.set_yscale("log")
    axes.set(xlim=(0.5, max(longest, 2)), xlabel="eigenvalue, largest first", ylabel="share of the sum")
