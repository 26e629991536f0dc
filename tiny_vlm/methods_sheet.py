"""What each method keeps of one picture: ``python -m tiny_vlm.methods_sheet --out reports/methods``.

One sheet for all embedded models: every method of ``halfv methods`` with the same budget where it has one stage, and
with its own stages otherwise, and the kept tokens left on the picture. A method that keeps nonsense is wrong however
exact its algebra, and this is where that would be seen. Beside it, the same as a table.

The band down the middle of tiny-llava's pictures is its tower's own: nothing in its training used the CLS token, whose
attention says nothing there. Methods that go by it cannot be judged on that model.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from halfv_accel import accelerate
from halfv_accel.adapters import family_of
from halfv_accel.methods import Facts
from halfv_accel.plan import Plan
from halfv_accel.plan_text import describe_plan
from halfv_accel.prompts import batch_inputs
from halfv_accel.published import METHODS
from halfv_accel.strategies import KeepNone
from halfv_data import shipped_question
from halfv_probe.views.canvas import save
from halfv_probe.views.report.overlays import KeptBy, TokenMap, locate
from halfv_probe.views.report.token_pictures import kept_picture
from tiny_vlm import NAMES, load

RETENTION = 2 / 9  # 22.2 %, one of the field's three
COLUMNS, INCHES = 8, 1.3


@dataclass(frozen=True)
class Kept:
    """One method on one model: the picture, and what it left."""

    model: str
    method: str
    plan: str
    visual: int
    kept: int
    average: float
    picture: bytes


def plans(facts: Facts) -> Iterator[tuple[str, Plan]]:
    """Every method that has a plan without being calibrated; single stages with the common budget."""
    for method in METHODS.values():
        stages = method.stages(facts)
        if len(stages) == 1 and not isinstance(stages[0].strategy, KeepNone):
            stages = (replace(stages[0], retention=RETENTION),)
        chosen = [stage for stage in stages if not isinstance(stage.strategy, KeepNone)]
        if chosen:
            yield method.title, Plan(stages)


@torch.no_grad()
def kept_by_all(name: str, image: Image.Image, question: str) -> Iterator[Kept]:
    """All methods on one model: what is left behind the last stage that chooses."""
    model, processor = load(name)
    family = family_of(model)
    inputs = batch_inputs(processor, [([image], question, None)], model.device)
    visual = family.visual_positions(inputs["input_ids"])[0]
    seen, grid = locate(family, processor, inputs, image, int(visual.sum()))
    for title, plan in plans(Facts.of(model.config)):
        with accelerate(model, plan) as run:
            model(**inputs, logits_to_keep=1)
        report: Any = run.last
        stages = zip(plan.stages, report.stages, report.kept, strict=True)
        choosing = [(done, mask) for stage, done, mask in stages if not isinstance(stage.strategy, KeepNone)]
        done, mask = choosing[-1]
        kept = mask[0][visual].numpy()
        none = np.zeros(len(kept), dtype=bool)
        tokens = TokenMap(question, seen, grid, [KeptBy(done.name, done.layer, done.then, kept)], none, None)
        picture, average = kept_picture(tokens, 0), report.average_visual_tokens[0]
        yield Kept(name, title, describe_plan(plan), len(kept), int(kept.sum()), average, picture)


def draw(figure: Figure, found: Sequence[Kept]) -> None:
    """A line of pictures after the other, each model beginning on a new one."""
    by_model = [[each for each in found if each.model == name] for name in dict.fromkeys(k.model for k in found)]
    lines = [group[start : start + COLUMNS] for group in by_model for start in range(0, len(group), COLUMNS)]
    for row, line in enumerate(lines):
        for column, each in enumerate(line):
            axes: Any = figure.add_subplot(len(lines), COLUMNS, row * COLUMNS + column + 1)
            axes.imshow(np.asarray(Image.open(io.BytesIO(each.picture))))
            axes.set_title(f"{each.method}\n{each.kept} of {each.visual}", fontsize=5)
            axes.set_axis_off()
            if column == 0:
                axes.text(
                    -0.06, 0.5, each.model, rotation=90, va="center", ha="right", transform=axes.transAxes, fontsize=6
                )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tiny_vlm.methods_sheet", description=__doc__.split(":", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for kept.png and kept.csv")
    parser.add_argument("--image", type=Path, help="another picture than the shipped one")
    parser.add_argument("--prompt", help="another question about it")
    options = parser.parse_args(arguments)
    path, question = shipped_question()
    with Image.open(options.image or path) as opened:
        image = opened.convert("RGB")
    found = [each for name in NAMES for each in kept_by_all(name, image, options.prompt or question)]
    fields = ("model", "method", "plan", "visual", "kept", "average")
    table = pd.DataFrame([{name: getattr(each, name) for name in fields} for each in found])
    rows = sum(-(-sum(k.model == name for k in found) // COLUMNS) for name in NAMES)
    options.out.mkdir(parents=True, exist_ok=True)
    written = save(
        options.out / "kept.png", table, lambda figure: draw(figure, found), (COLUMNS * INCHES, rows * INCHES * 1.15)
    )
    print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
