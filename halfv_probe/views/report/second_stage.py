"""The second stage alone, with nothing pruned before it: what each mode loses from each layer (Table 2, Figure 8)."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from halfv_accel import Profile
from halfv_accel.evidence import Isolated
from halfv_probe.views import tables
from halfv_probe.views.canvas import NARROW, labelled_below, render
from halfv_probe.views.landmarks import percent
from halfv_probe.views.plots import background
from halfv_probe.views.report import page

MODES: dict[str, dict[str, Any]] = {
    "freeze": dict(label="freeze: no longer updated, still attended to", color="#10558c", linestyle="-", marker="s"),
    "sparse": dict(label="sparse: only a few stay", color="#b5452c", linestyle="--", marker="^"),
    "sparse, own scores": dict(
        label="sparse, scored by the stage's own layer", color="#b5452c", linestyle="-.", marker="v"
    ),
    "withdraw": dict(label="withdraw: none stays", color="#555555", linestyle=":", marker="D"),
}


def second_stage(profile: Profile) -> str:
    """The section: a line a mode, and its numbers."""
    runs = profile.evidence.isolated
    if not runs:
        return ""
    counts = sorted({run.samples for run in runs})
    samples = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    caption = (
        f"Only the second stage, begun at one layer after another, on {samples} samples: what each mode loses. Where a "
        "line comes down to zero, visual tokens have given what they hold, and that mode costs nothing from there on. "
        "The lowest line is the mode that suits this model: in the paper's Table 2 freezing (suppressing) does for "
        "LLaVA-1.5 and not for Qwen2.5-VL, which needs a few tokens that are still updated; withdrawing all harms both."
    )
    alt = " ".join(in_words(profile))
    picture = render(lambda figure: draw_second_stage(figure, profile), (NARROW, 4.0))
    plot = page.plot(picture, alt, caption, "isolated", tables.isolated(profile))
    groups = [(mode, [_row(run) for run in runs if _name(run) == mode]) for mode in _present(profile)]
    header = ("from layer", "prefill FLOPs", "replies unchanged", "lost", "KL (nats)")
    return "\n".join((page.paragraph(alt), plot, page.grouped_grid("The second stage alone", header, groups)))


def in_words(profile: Profile) -> list[str]:
    """For each mode where it loses least, and how much; the earliest layer among equals."""
    found = []
    for mode in _present(profile):
        best = min((run for run in profile.evidence.isolated if _name(run) == mode), key=lambda r: (r.drop, r.layer))
        found.append(f"{mode.capitalize()} loses least from layer {best.layer} on: {percent(best.drop)}.")
    return found


def draw_second_stage(figure: Figure, profile: Profile) -> None:
    """What is lost, over the layer from which the second stage acts."""
    axes: Any = figure.subplots()
    background(axes, profile)
    for mode in _present(profile):
        runs = sorted((run for run in profile.evidence.isolated if _name(run) == mode), key=lambda run: run.layer)
        points = [run.layer for run in runs], [run.drop for run in runs]
        axes.plot(*points, linewidth=1.5, markersize=5, markerfacecolor="white", clip_on=False, **MODES[mode])
    lost = "right answers lost" if tables.by_answers(profile) else "replies changed"
    axes.set(xlabel="second stage from decoder layer", ylabel=f"drop ({lost},\nshare of samples)")
    axes.set_ylim(bottom=0)
    labelled_below(figure, axes.get_legend_handles_labels()[0], columns=1)


def _present(profile: Profile) -> list[str]:
    return [mode for mode in MODES if any(_name(run) == mode for run in profile.evidence.isolated)]


def _name(run: Isolated) -> str:
    return f"{run.mode}, own scores" if run.scored_by == "own" else run.mode


def _row(run: Isolated) -> tuple[str, ...]:
    shares = (percent(share) for share in (run.flops, run.agreement, run.drop))
    return (str(run.layer), *shares, f"{run.kl:.3g}")
