"""Publish a training run: ``python -m tiny_vlm.report runs/qwen2.5-vl tiny-qwen2.5-vl``.

Draws the learning curve from the logs that ``tiny_vlm.train`` wrote, copies logs and picture into
``reports/tiny_vlm/NAME`` and the checkpoint into the package.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_vlm import CHECKPOINTS, NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORTS = Path("reports/tiny_vlm")
LOGS = ("log.csv", "accuracy.csv", "recipe.json")
AUXILIARY = {
    "colour": "colour (tower)",
    "shape": "shape (tower)",
    "digit": "digits (tower)",
    "centre": "middle of a shape (tower)",
    "place": "place (layer 2)",
    "named": "named thing (layer 5)",
    "target": "target cell (layer 6)",
    "gaze": "gaze (layer 6)",
    "stale": "others' answers (stale)",
}
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee7733", "#009988")


def learning_curve(run_folder: Path, png: Path) -> None:
    """Draw losses, accuracy per task, and accuracy of blinded text over the steps of a run, finished or not.

    Parameters
    ----------
    run_folder : Path
        With log.csv, accuracy.csv and recipe.json; before the first validation accuracy.csv may be missing.
    png : Path
        Picture to write.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    recipe = json.loads(_existing(run_folder, "recipe.json").read_text(encoding="utf-8"))
    losses = _read_csv(_existing(run_folder, "log.csv"))
    accuracy = _read_csv(run_folder / "accuracy.csv") if (run_folder / "accuracy.csv").is_file() else []
    figure = Figure(figsize=(10, 10.5), layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    _draw_losses(top, losses)
    _draw_tasks(middle, accuracy)
    _draw_blinded(bottom, accuracy)
    last = max((int(row["step"]) for row in [*losses, *accuracy]), default=recipe["steps"])
    for axes in (top, middle, bottom):
        _shade_phases(axes, recipe, last)
        axes.set_xlim(0, last)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    bottom.set_xlabel("training step")
    minutes = float(losses[-1]["minutes"]) if losses else 0.0
    progress = f"{last} of {recipe['steps']} steps, {minutes:.0f} minutes, seed {recipe['seed']}"
    figure.suptitle(f"{recipe['model']}: {progress}")
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=110)


def publish(run_folder: Path, name: str, checkpoints: Path = CHECKPOINTS, reports: Path = REPORTS) -> Path:
    """Copy a finished run's checkpoint into the package, and its logs and learning curve into the reports.

    Returns
    -------
    Path
        The report folder.

    Raises
    ------
    ValueError
        If the name is unknown, or the run trained another model.
    FileNotFoundError
        If the run is not finished.
    """
    if name not in NAMES:
        raise ValueError(f"no embedded model is called {name!r}: choose one of {', '.join(NAMES)}")
    recipe = json.loads(_existing(run_folder, "recipe.json").read_text(encoding="utf-8"))
    if recipe["model"] != name:
        raise ValueError(f"{run_folder} trained {recipe['model']}, not {name}: publish it under its own name")
    _existing(run_folder, "checkpoint/config.json")
    folder = reports / name
    folder.mkdir(parents=True, exist_ok=True)
    for log in LOGS:
        shutil.copyfile(_existing(run_folder, log), folder / log)
    learning_curve(run_folder, folder / "learning_curve.png")
    _replace_tree(run_folder / "checkpoint", checkpoints / name)
    return folder


def _replace_tree(source: Path, target: Path) -> None:
    """Copy beside the target first, so that a copy that fails leaves the old one alone."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _existing(run_folder: Path, name: str) -> Path:
    file = run_folder / name
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: the run is not finished, or this is no run of tiny_vlm.train")
    return file


def _read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _series(rows: list[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    known = [row for row in rows if row.get(column)]  # a head may have joined later
    return [int(row["step"]) for row in known], [float(row[column]) for row in known]


def _draw_losses(axes: Axes, rows: list[dict[str, str]]) -> None:
    axes.plot(*_series(rows, "answer"), color="black", linewidth=1.8, label="answer")
    for (column, label), colour in zip(AUXILIARY.items(), COLOURS, strict=True):
        if rows and column in rows[0]:
            axes.plot(*_series(rows, column), color=colour, linewidth=1, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("training loss (nats)")


def _draw_tasks(axes: Axes, rows: list[dict[str, str]]) -> None:
    seeing = [row for row in rows if row["blind_from"] == ""]
    others = ("step", "blind_from", "macro", "questions")
    for index, task in enumerate(column for column in (rows[0] if rows else ()) if column not in others):
        style = "--" if task.endswith("_beside") else "-"  # two hops
        label = task.replace("_", " ")
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(*_series(seeing, task), style, marker=".", color=colour, linewidth=1.4, label=label)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("validation accuracy")


def _draw_blinded(axes: Axes, rows: list[dict[str, str]]) -> None:
    levels = sorted({row["blind_from"] for row in rows}, key=lambda level: -int(level or 10**6))
    for level, colour in zip(levels, ("black", "#4477aa", "#ee6677"), strict=False):
        label = f"text blind from layer {level}" if level else "untouched"
        chosen = [row for row in rows if row["blind_from"] == level]
        axes.plot(*_series(chosen, "macro"), marker=".", color=colour, linewidth=1.6, label=label)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("macro accuracy")


def _shade_phases(axes: Axes, recipe: dict[str, Any], last: int) -> None:
    """Where early layers see a swapped picture, and where the learning rate decays."""
    phases = {
        "picture swapped": (recipe["swap_after"], "#4477aa", 0.08),
        "rate decays": (recipe["decay_from"] * recipe["steps"], "#ccbb44", 0.16),
    }
    for label, (start, colour, alpha) in phases.items():
        if start < last:
            axes.axvspan(start, last, color=colour, alpha=alpha, linewidth=0)
            place = axes.get_xaxis_transform()  # steps across, share of the height upwards
            axes.text(start, 1.0, f" {label}", transform=place, va="bottom", fontsize=8, color="#555555")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tiny_vlm.report", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder that tiny_vlm.train wrote")
    parser.add_argument("name", choices=NAMES)
    args = parser.parse_args()
    print(publish(args.run, args.name))


if __name__ == "__main__":
    main()
