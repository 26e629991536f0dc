"""The sections of a report: each takes a profile and returns HTML, or nothing where the profile does not hold it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from halfv_accel import Profile
from halfv_accel.evidence import StageUtility
from halfv_probe.views import plots, spectra, tables
from halfv_probe.views.canvas import NARROW, render
from halfv_probe.views.landmarks import marks, percent
from halfv_probe.views.report import figures, page
from halfv_probe.views.report.overlays import TokenMap
from halfv_probe.views.report.page import Picture
from halfv_probe.views.report.token_pictures import draw_coverage, given_picture, kept_picture


def entropy(profile: Profile) -> str:
    """The three curves with the stages and the chosen layers (Figure 2b)."""
    evidence = profile.evidence
    visual = evidence.entropy["visual"]
    points = {0: "before layer 0"} | {layer: f"before layer {layer}" for layer, _ in marks(profile)}
    points[len(visual) - 1] = "at the output"
    course = ", ".join(f"{visual[layer]:.2f} nats {where}" for layer, where in points.items())
    spread = " Bands: one standard deviation over samples." if evidence.entropy_std else ""
    caption = (
        f"How many directions the tokens spread over, before each layer: entropy of the {evidence.k} largest "
        f"eigenvalues, mean over samples.{spread} The reading is the paper's: while visual entropy stays high, tokens "
        "repeat each other as the picture's patches do (stage I); where it falls, the model gathers what it saw (II); "
        "behind that, little is added (III). Dotted lines are the layers at which the plan acts."
    )
    if evidence.null is not None:
        caption += " Thin grey lines: the same architecture with random weights, whose curves no learning has shaped."
    if evidence.curve_only:
        caption += " Grey shades are the stages as this curve alone shows them; trials may put the plan elsewhere."
    content = render(lambda figure: plots.draw_entropy(figure, profile), (NARROW, 4.3))
    return page.plot(content, f"Entropy of visual tokens: {course}.", caption, "entropy", tables.entropy(profile))


def spectrum(profile: Profile) -> str:
    """Eigenvalues over depth (Figure 2c)."""
    rows = profile.evidence.spectrum
    if not spectra.has_spectrum(profile):
        return ""
    caption = (
        "Each eigenvalue's share of the sum, visual tokens, mean over samples. Above: one column a layer, on a log "
        f"scale; dashed: k = {profile.evidence.k}, dotted: the chosen layers. Below: the same at a few layers. A steep "
        "fall means that few directions carry nearly all. (The paper's Figure 2c, drawn flat.)"
    )
    first, last = percent(rows[0][0]), percent(rows[-1][0])
    alt = f"The largest eigenvalue holds {first} of the sum before layer 0, {last} at the output."
    content = render(lambda figure: spectra.draw_spectrum(figure, profile), (NARROW, 5.6))
    return page.plot(content, alt, caption, "spectrum", tables.spectrum(profile))


def redundancy(profile: Profile) -> str:
    """Layer KL and suffix KL (Figure 2d)."""
    evidence = profile.evidence
    if not (evidence.layer_kl or evidence.suffix_kl):
        return ""
    below = " Below: on how many samples the most likely next token stays." if evidence.suffix_agreement else ""
    line = " Line: this layer and all deeper ones do." if evidence.suffix_kl else ""
    null = " Grey: this layer alone stops, with random weights." if evidence.null is not None else ""
    caption = (
        "How far the distribution of the next token moves when visual tokens are no longer updated (KL divergence, log "
        f"scale). Bars: this layer alone stops.{line}{null}{below} Near zero, that work is not needed. Nothing reads "
        "what the last layer does to visual tokens, so its KL is 0."
    )
    curve = evidence.layer_kl or evidence.suffix_kl
    worst = int(np.argmax(curve))
    alt = f"Largest KL {curve[worst]:.2g} nats, at layer {worst}; at the last but one layer {curve[-2]:.2g}."
    content = render(lambda figure: plots.draw_redundancy(figure, profile), (NARROW, 4.3))
    return page.plot(content, alt, caption, "redundancy", tables.redundancy(profile))


def utility(profile: Profile) -> str:
    """Marginal utility by layer and retention (Table 1)."""
    cells = profile.evidence.utility
    if not cells:
        return _utility_by_stage(profile)
    best = figures.best_cell(cells)
    caption = (
        "Visual tokens pruned once, before this layer, to this share: drop / (share of FLOPs saved + 0.01), lower is "
        "better (Eq. 3). An empty cell was not run. In the paper's Table 1 the start of stage II has the lowest value."
    )
    alt = f"Marginal utility by layer and retention; the lowest is {best.utility:.2g} at layer {best.layer}."
    layers = len({cell.layer for cell in cells})
    height = 1.7 + layers * min(0.3, max(0.17, 8 / layers))
    content = render(lambda figure: figures.draw_utility(figure, profile), (NARROW, height))
    plot = page.plot(content, alt, caption, "utility", tables.utility(profile))
    return f"{plot}\n{_utility_by_stage(profile)}"


def _utility_by_stage(profile: Profile) -> str:
    """Means over the layers of each stage, as the paper's Table 1 has them."""
    stages = profile.evidence.utility_by_stage
    if not stages:
        return ""
    best = min(stages, key=lambda stage: stage.utility)
    rows = [
        (f"Stage {stage.stage}", spans(stage.layers), percent(stage.saved), _utility(stage, stage is best))
        for stage in stages
    ]
    words = f"By stage, as the paper's Table 1 has it: utility is lowest, and so best, in stage {best.stage}."
    head = ("stage", "layers", "prefill saved", "marginal utility")
    table = page.grid("Marginal utility by stage", head, rows)
    return "\n".join((page.paragraph(words), table, page.numbers("utility_by_stage", tables.utility_by_stage(profile))))


def _utility(stage: StageUtility, lowest: bool) -> str:
    text = f"{stage.utility:.3g}"
    return page.Strong(f"{text} (lowest)") if lowest else text


def spans(layers: Sequence[int]) -> str:
    """Layers for people.

    >>> spans([1, 2, 3, 9]), spans([])
    ('1 to 3, 9', 'none')
    """
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs) or "none"


def trials(profile: Profile) -> str:
    """Every plan that was run."""
    runs = profile.evidence.trials
    if not runs:
        return ""
    counts = sorted({run.samples for run in runs})
    samples = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    caption = (
        f"Every plan that was run, on {samples} samples: what it leaves of the FLOPs against what it loses. Best is at "
        "the lower left. The line joins the plans that no other beats in one without losing in the other."
    )
    alt = f"{len(runs)} plans, FLOPs from {percent(runs[0].flops)} to {percent(max(run.flops for run in runs))}."
    content = render(lambda figure: figures.draw_trials(figure, profile), (NARROW, 4.3))
    return page.plot(content, alt, caption, "trials", tables.trials(profile))


def votes(profile: Profile) -> str:
    """Bootstrap: how often each value is chosen."""
    panels = [values for values in profile.evidence.votes.values() if values]
    if not panels:
        return ""
    caption = (
        "The samples were drawn anew with replacement, and the choice was made again each time: how often each value "
        "won. A value with nearly all votes does not hang on a few samples."
    )
    won = (
        f"{choice} {max(values, key=values.__getitem__)}" for choice, values in profile.evidence.votes.items() if values
    )
    content = render(
        lambda figure: figures.draw_votes(figure, profile),
        (NARROW, 0.8 + 0.4 * len(panels) + 0.27 * sum(map(len, panels))),
    )
    return page.plot(content, f"Most votes: {', '.join(won)}.", caption, "votes", tables.votes(profile))


def kept_tokens(profile: Profile, pictures: Sequence[TokenMap], remark: str) -> str:
    """Overlays and coverage of some samples; without them one sentence about why."""
    parts = [page.paragraph(remark)]
    for number, tokens in enumerate(pictures, 1):
        parts += [page.heading(f"{number}. {tokens.question}"), _kept(tokens, f"tokens_{number}")]
    return "\n".join(parts) if pictures or remark else ""


def _kept(tokens: TokenMap, name: str) -> str:
    """One sample: what the model is given, what is left after each stage, and the plane they were chosen in."""
    count = len(tokens.anchors)
    pictures = []
    if tokens.image is not None:
        pictures.append(
            Picture(given_picture(tokens), "The picture.", f"What the model is given: {count} visual tokens.")
        )
    for place, stage in enumerate(tokens.stages):
        if stage.then == "drop":
            label = f"{int(stage.kept.sum())} of {count} kept from layer {stage.layer} ({stage.name.upper()})."
            pictures.append(
                Picture(kept_picture(tokens, place), f"The picture with dropped patches greyed: {label}", label)
            )
    plane = tokens.plane
    if plane is not None:
        coverage = render(lambda figure: draw_coverage(figure, tokens, plane), (NARROW, 3.9))
        label = f"All tokens by PCA; two axes show {percent(tokens.explained)} of the variance."
        alt = "Kept tokens among all tokens in the plane of their two main axes."
        pictures.append(Picture(coverage, alt, label, wide=True))
    return page.gallery(pictures, _kept_caption(tokens), name, tokens.frame())


def _kept_caption(tokens: TokenMap) -> str:
    if tokens.image is not None:
        parts = [
            "Greyed and hatched patches are dropped. Framed ones are anchors, the other kept ones are for coverage."
        ]
    else:
        parts = [
            "One cell a visual token, in reading order: blue kept, hatched dropped, framed anchor. It is no map of the "
            "picture: how this model lays its tokens over one is not certain here."
        ]
    parts += [
        f"From layer {stage.layer} on the kept ones are frozen; none is dropped there."
        for stage in tokens.stages
        if stage.then == "freeze"
    ]
    if tokens.plane is not None:
        parts.append(
            "The plot shows all visual tokens before the IVR layer by the directions of their hidden states, among "
            "which coverage is sought. (The paper's Figure 7 uses t-SNE.)"
        )
    return " ".join(parts)
