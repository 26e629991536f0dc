"""Which layer's attention ranks tokens matters, as docs/fidelity.md says in figures."""

import itertools
import re
from pathlib import Path

import pytest
import torch

import tiny_vlm
from halfv_accel.plan_text import parse_plan
from halfv_data import scenes
from halfv_probe.trials.prompts import Prompts
from halfv_probe.trials.replies import greedy_replies
from halfv_probe.trials.walk import run_trials

SCENES = 120  # the first of the 600 that the table is from
CLOSE = 0.08
HEAD = "| sparse 5 % from layer "


def documented():
    """By model and scorer, the share of answers that change, by layer."""
    lines = (Path(__file__).parents[3] / "docs" / "fidelity.md").read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in lines]
    start = next(number for number, line in enumerate(lines) if line.startswith(HEAD))
    layers = [int(cell) for cell in re.findall(r"\d+(?= \|)", lines[start].removeprefix(HEAD))]
    for row in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]):
        what, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        name, scorer = what.split(", ")
        shares = [float(cell) for cell in cells]
        yield name, {"layer before": "", "own layer": ":own"}[scorer], dict(zip(layers, shares, strict=True))


@pytest.mark.parametrize("name", ["tiny-qwen2.5-vl", "tiny-llava"])
def test_the_documented_shares_are_those_of_the_embedded_models(name):
    model, processor = tiny_vlm.load(name)
    expected = {
        f"sparse:{layer}:0.05{own}": share
        for model_name, own, shares in documented()
        if model_name == name
        for layer, share in shares.items()
    }
    assert len(expected) == 12
    plans, same = [parse_plan(text) for text in expected], []
    for inputs in Prompts(processor, list(scenes(SCENES, 0, "heldout")), batch_size=20):
        same.append(run_trials(model, inputs, greedy_replies(model, inputs), plans).same)
    lost = 1 - torch.cat(same, dim=1).double().mean(dim=1)
    assert dict(zip(expected, lost.tolist(), strict=True)) == pytest.approx(expected, abs=CLOSE)
