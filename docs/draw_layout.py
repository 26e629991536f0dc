"""Draws docs/layout.png, the picture in docs/accelerator.md: ``python docs/draw_layout.py``."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch, Rectangle

TEXT, VISUAL, FROZEN, DROPPED, PADDING = "#4c78a8", "#f2a33a", "#fbe0b3", "#ffffff", "#d5d5d5"
LAYERS, IVR, SSR = 8, 3, 6
ROWS = (  # two rows of a batch: padding, words before the picture, visual tokens, which of them stay, words behind
    (0, 2, 12, (0, 3, 5, 6, 9, 11), 4),
    (5, 2, 8, (1, 2, 4, 7), 3),
)


def stream(row, layer):
    """Colours of the residual stream's places at a layer."""
    padding, before, visual, kept, after = row
    picture = []
    for token in range(visual):
        stays = token in kept
        picture.append(VISUAL if layer < IVR or (stays and layer < SSR) else FROZEN if stays else DROPPED)
    return [PADDING] * padding + [TEXT] * before + picture + [TEXT] * after


def cache(row, layer):
    """Colours of the places in a layer's cache after the prefill, as wide as the widest row needs."""
    if layer < IVR:
        return stream(row, layer)
    _, before, _, kept, after = row
    widest_kept = max(len(other[3]) for other in ROWS)
    if layer < SSR:
        width = max(other[1] + len(other[3]) + other[4] for other in ROWS)
        used = [TEXT] * before + [VISUAL] * len(kept) + [TEXT] * after
        return [PADDING] * (width - len(used)) + used
    words = max(other[1] + other[4] for other in ROWS)
    frozen = [PADDING] * (widest_kept - len(kept)) + [FROZEN] * len(kept)
    return frozen + [PADDING] * (words - before - after) + [TEXT] * (before + after)


def draw(axis, cells, left, bottom):
    for place, colour in enumerate(cells):
        axis.add_patch(Rectangle((left + place, bottom), 1, 0.8, facecolor=colour, edgecolor="#777777", linewidth=0.5))


figure, axis = plt.subplots(figsize=(11, 7.2))
for number, row in enumerate(ROWS):
    for layer in range(LAYERS):
        bottom = layer + (1 - number) * (LAYERS + 2.6)
        draw(axis, stream(row, layer), 0, bottom)
        draw(axis, cache(row, layer), 23, bottom)
        axis.text(-0.6, bottom + 0.4, f"layer {layer}", ha="right", va="center", fontsize=8)
    base = (1 - number) * (LAYERS + 2.6)
    axis.text(0, base - 0.35, f"row {number}: tokens in the residual stream (always full length)", va="top", fontsize=9)
    axis.text(23, base - 0.35, "places in the layer's key/value cache", va="top", fontsize=9)
    for layer, name in ((IVR, "IVR: drop"), (SSR, "SSR: freeze")):
        axis.plot([-0.3, 18.3], [base + layer - 0.1] * 2, color="#c0392b", linewidth=1.2)
        axis.text(18.5, base + layer - 0.1, name, color="#c0392b", va="center", fontsize=9)
legend = {
    "text": TEXT,
    "visual, processed": VISUAL,
    "visual, frozen: keys and values only": FROZEN,
    "dropped: holds its last state, seen by nobody": DROPPED,
    "padding": PADDING,
}
handles = [Patch(facecolor=colour, edgecolor="#777777", label=name) for name, colour in legend.items()]
axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncol=5, fontsize=8, frameon=False)
axis.set_xlim(-4, 42)
axis.set_ylim(-1.4, 2 * LAYERS + 3)
axis.axis("off")
figure.savefig(Path(__file__).with_name("layout.png"), dpi=130, bbox_inches="tight")
