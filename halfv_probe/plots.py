"""Pictures of a profile."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from halfv_accel import HalfVError, Profile
from halfv_accel.files import write_atomically

GROUP_STYLES: dict[Literal["visual", "text", "all"], dict[str, Any]] = {
    "visual": {"color": "#1b6ca8", "linewidth": 2.4, "marker": "o", "markersize": 4},
    "text": {"color": "#c8553d", "linewidth": 1.4, "marker": "s", "markersize": 3},
    "all": {"color": "#8a8a8a", "linewidth": 1.4, "linestyle": "--"},
}
STAGE_COLOURS = ("#e8f1f8", "#fdf3dc", "#e9f5e6")


def plot_entropy(profile: Profile, path: Path | str) -> None:
    """Draw entropy over depth with the three stages and the chosen layers, and the layer redundancy below.

    Parameters
    ----------
    profile : Profile
        With its evidence.
    path : path
        PNG, PDF or SVG; the ending decides. Written in full or not at all.

    Raises
    ------
    HalfVError
        If the ending is another one, or the file cannot be written.
    """
    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in ("png", "pdf", "svg"):
        raise HalfVError(f"{path} ends in {kind or 'nothing'}: name a picture that ends in .png, .pdf or .svg")
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    _draw_stages(top, profile)
    for group, style in GROUP_STYLES.items():
        top.plot(profile.evidence.entropy[group], label=f"{group} tokens", **style)
    top.set_ylabel(f"entropy of the top {profile.evidence.k} eigenvalues (nats)")
    top.legend(loc="best", framealpha=0.9)
    low, high = top.get_ylim()
    top.set_ylim(low - 0.25 * (high - low), high)  # room for the labels of the chosen layers
    stable = "" if profile.evidence.stable else "  (no three stages found: cautious choice)"
    title = f"{profile.model.id}: entropy over depth, {profile.calibration.samples} samples{stable}"
    figure.suptitle(title, parse_math=False)  # a model's name may hold a dollar sign

    bottom.bar(range(len(profile.evidence.layer_kl)), profile.evidence.layer_kl, color="#1b6ca8", width=0.6)
    if any(value > 0 for value in profile.evidence.layer_kl):
        bottom.set_yscale("log")  # the last layer's bar may be missing: nothing reads its visual rows, so its KL is 0
    bottom.set_ylabel("KL without the layer's\nvisual updates (nats)")
    bottom.set_xlabel("decoder layer (entropy: of its input; last point: the output. Low KL: the layer is redundant)")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=130)
    write_atomically(path, content.getvalue())


def _draw_stages(axes: Any, profile: Profile) -> None:
    """Shade the stages and mark the layers at which tokens are reduced."""
    last = profile.model.num_layers
    ssr = profile.ssr.layer if profile.ssr.layer is not None else last
    bounds = [0, profile.ivr.layer, ssr, last]
    names = ("I alignment", "II aggregation", "III saturation")
    transform = axes.get_xaxis_transform()
    if profile.evidence.stable:
        for name, colour, start, end in zip(names, STAGE_COLOURS, bounds, bounds[1:], strict=False):
            if end > start:
                axes.axvspan(start, end, color=colour, zorder=0)
                axes.text((start + end) / 2, 1.01, name, transform=transform, ha="center", va="bottom", fontsize=9)
    marks = [(profile.ivr.layer, f"IVR: keep {profile.ivr.retention:.0%}")]
    if profile.ssr.layer is not None:
        kept = f" {profile.ssr.retention:.0%}" if profile.ssr.retention else ""
        marks.append((profile.ssr.layer, f"SSR: {profile.ssr.mode}{kept}"))
    for layer, text in marks:
        axes.axvline(layer, color="black", linewidth=1, linestyle=":")
        axes.annotate(
            text,
            (layer, 0.03),
            xycoords=transform,
            xytext=(-5, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="bottom",
            fontsize=9,
        )
