"""Where the stages begin, by every curve that can say it: the curves under one another, each with its own mark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from halfv_accel import Profile
from halfv_accel.evidence import Witness
from halfv_probe.views import tables
from halfv_probe.views.canvas import NARROW, labelled_below, render
from halfv_probe.views.landmarks import marks
from halfv_probe.views.plots import DOTTED, LABEL_BOX, ROUNDING_KL, background
from halfv_probe.views.report import page

Stage = Literal["ivr", "ssr"]
STAGES: dict[Stage, str] = {"ivr": "Stage II", "ssr": "Stage III"}
LOOKS: dict[Stage, dict[str, Any]] = {
    "ivr": dict(color="#b5452c", linestyle="-", linewidth=1.4),
    "ssr": dict(color="#3d7a3a", linestyle="--", linewidth=1.4),
}
LABELS = {  # curve, as its witness is called: what the axis says
    "visual entropy": "visual entropy\n(nats)",
    "text entropy": "text entropy\n(nats)",
    "attention": "attention to\nvisual (share)",
    "layer KL": "layer KL\n(nats)",
    "suffix KL": "suffix KL\n(nats)",
    "maturity": "maturity\n(share)",
}
COLUMNS = (
    "entropy_visual_nats",
    "entropy_text_nats",
    "attention_to_visual_share",
    "layer_kl_nats",
    "suffix_kl_nats",
    "maturity_share",
)
PANEL_INCHES = 1.02


def witnesses(profile: Profile) -> str:
    """The section: whether the curves agree, the curves, and what each says."""
    found = profile.evidence.witnesses
    if not any(found.values()):
        return ""
    curves = measured(profile)
    caption = (
        "The curves that can tell where a stage begins, over the same layers. The line through a panel is at the layer "
        "that this curve names for stage II (red, whole) or III (green, dashed); where none runs, it names none. Lines "
        "that stand above one another agree. Grey shades are the stages of the entropy curve, dotted lines the layers "
        "at which the plan acts. KL is on a log scale."
    )
    words = [in_words(stage, found[stage]) for stage in STAGES if found.get(stage)]
    height = 0.9 + PANEL_INCHES * len(curves)
    picture = render(lambda figure: draw_witnesses(figure, profile), (NARROW, height))
    plot = page.plot(picture, " ".join(words), caption, "witness_curves", witness_curves(profile))
    groups = [
        (f"{STAGES[stage]} ({'L_IVR' if stage == 'ivr' else 'L_SSR'})", [_row(one) for one in found[stage]])
        for stage in STAGES
        if found.get(stage)
    ]
    table = page.grouped_grid("Where the stages begin", ("curve", "layer", "says"), groups)
    said = page.numbers("witnesses", tables.witnesses(profile))
    return "\n".join((*map(page.paragraph, words), plot, table, said))


def in_words(stage: Stage, said: Sequence[Witness]) -> str:
    """Do the curves agree on where this stage begins, give or take one layer?"""
    where = f"where {STAGES[stage]} begins"
    by_layer: dict[int, list[str]] = {}
    for witness in said:
        if witness.layer is not None:
            by_layer.setdefault(witness.layer, []).append(witness.curve)
    silent = [witness.curve for witness in said if witness.layer is None]
    rest = f"; {' and '.join(silent)} {'name' if len(silent) > 1 else 'names'} none" if silent else ""
    if not by_layer:
        return f"No curve names {where}."
    named = ", ".join(f"layer {layer} ({', '.join(curves)})" for layer, curves in sorted(by_layer.items()))
    if sum(map(len, by_layer.values())) == 1:
        return f"Only one curve names {where}: {named}{rest}."
    agree = max(by_layer) - min(by_layer) <= 1
    verb = "agree, give or take one layer, on" if agree else "disagree about"
    return f"The curves {verb} {where}: {named}{rest}."


def measured(profile: Profile) -> dict[str, list[float]]:
    """The curves of `LABELS` that this profile holds: by boundary, or by layer."""
    evidence = profile.evidence
    curves = {
        "visual entropy": evidence.entropy["visual"],
        "text entropy": evidence.entropy["text"],
        "attention": evidence.attention_to_visual,
        "layer KL": evidence.layer_kl,
        "suffix KL": evidence.suffix_kl,
        "maturity": evidence.maturity,
    }
    return {name: curve for name, curve in curves.items() if curve}


def witness_curves(profile: Profile) -> pd.DataFrame:
    """The numbers of the picture: one row a boundary."""
    table = tables.entropy(profile)
    return table[[name for name in ("boundary", *COLUMNS) if name in table]]


def draw_witnesses(figure: Figure, profile: Profile) -> None:
    """One panel a curve, with the layers that its witnesses name."""
    curves = measured(profile)
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        background(axes, profile)
        _curve(axes, curve, logarithmic=name.endswith("KL"))
        axes.set_ylabel(LABELS[name], fontsize=8)
        named = [
            (stage, witness.layer)
            for stage in STAGES
            for witness in profile.evidence.witnesses.get(stage, [])
            if witness.curve == name and witness.layer is not None
        ]
        _marks(axes, named)
    panels[-1].set_xlabel("decoder layer")
    handles = [Line2D([], [], label=f"{name} begins, by this curve", **LOOKS[stage]) for stage, name in STAGES.items()]
    if marks(profile):
        handles.append(Line2D([], [], color="black", linewidth=1, linestyle=DOTTED, label="the plan acts"))
    labelled_below(figure, handles, columns=2)


def _curve(axes: Any, curve: Sequence[float], logarithmic: bool) -> None:
    """A curve; on a log axis what is 0, but for rounding, has no place and is written at the bottom."""
    sparse = max(1, len(curve) // 24)
    style = dict(color="#10558c", linewidth=1.5, marker="o", markersize=3, markevery=sparse)
    if not logarithmic:
        axes.plot(curve, **style)
        return
    axes.plot([value if value > ROUNDING_KL else math.nan for value in curve], **style)
    if any(value > ROUNDING_KL for value in curve):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())  # so low a panel has room for powers of ten only
    for layer, value in enumerate(curve):
        if value <= ROUNDING_KL:
            at = dict(transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=7.5)
            axes.text(layer, 0.05, "0", bbox=LABEL_BOX, **at)


def _marks(axes: Any, named: Sequence[tuple[Stage, int]]) -> None:
    """A line at each layer, and its number above the panel, on the outer side of the two."""
    for stage, layer in named:
        axes.axvline(layer, zorder=1.8, **LOOKS[stage])
        left = len(named) > 1 and (layer, stage) == min((other, name) for name, other in named)
        side, shift = ("center", 0) if len(named) == 1 else ("right", -2) if left else ("left", 2)
        text = f"{STAGES[stage].removeprefix('Stage ')}: {layer}"
        where = dict(xycoords=("data", "axes fraction"), xytext=(shift, 1.5), textcoords="offset points")
        axes.annotate(text, (layer, 1), ha=side, va="bottom", fontsize=7.5, annotation_clip=False, **where)


def _row(witness: Witness) -> tuple[str, str, str]:
    return witness.curve, "none" if witness.layer is None else str(witness.layer), witness.says
