"""A run becomes a picture, and a finished run is published whole."""

import csv
import json
from dataclasses import asdict

import pytest
from PIL import Image

from halfv_data import TASKS
from tiny_vlm.report import AUXILIARY, learning_curve, publish
from tiny_vlm.train import Recipe


@pytest.fixture
def run(tmp_path):
    """A finished run of 3,000 steps with made-up numbers."""
    folder = tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "config.json").write_text("{}")
    (folder / "recipe.json").write_text(json.dumps(asdict(Recipe("tiny-llava", 3000))))
    losses = [
        {"step": step, "minutes": step / 50, "answer": 100 / step, **dict.fromkeys(AUXILIARY, 200 / step)}
        for step in (1000, 2000)
    ]
    accuracy = [
        {"step": step, "blind_from": blind, **dict.fromkeys(TASKS, step / 4000), "macro": step / 4000, "questions": 600}
        for step in (1500, 3000)
        for blind in ("", 2, 5)
    ]
    for name, rows in (("log.csv", losses), ("accuracy.csv", accuracy)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def test_the_picture_shows_something(run, tmp_path):
    learning_curve(run, tmp_path / "new" / "curve.png")
    with Image.open(tmp_path / "new" / "curve.png") as image:
        assert image.size[0] >= 1000
        assert len(image.convert("RGB").getcolors(10**6)) > 50


def test_a_run_without_validation_yet_is_drawn_too(run, tmp_path):
    (run / "accuracy.csv").unlink()
    learning_curve(run, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").is_file()


def test_publish_copies_checkpoint_logs_and_picture(run, tmp_path):
    checkpoints, reports = tmp_path / "checkpoints", tmp_path / "reports"
    (checkpoints / "tiny-llava").mkdir(parents=True)
    (checkpoints / "tiny-llava" / "stale.bin").write_text("of an earlier run")
    folder = publish(run, "tiny-llava", checkpoints, reports)
    assert folder == reports / "tiny-llava"
    assert {f.name for f in folder.iterdir()} == {"log.csv", "accuracy.csv", "recipe.json", "learning_curve.png"}
    assert [f.relative_to(checkpoints).as_posix() for f in checkpoints.rglob("*.*") if f.is_file()] == [
        "tiny-llava/config.json"
    ]


def test_publish_refuses_another_model_and_an_unfinished_run(run, tmp_path):
    with pytest.raises(ValueError, match=r"trained tiny-llava, not tiny-qwen2\.5-vl: publish it under its own name"):
        publish(run, "tiny-qwen2.5-vl", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="no embedded model is called 'llava'"):
        publish(run, "llava", tmp_path, tmp_path)
    (run / "checkpoint" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: the run is not finished"):
        publish(run, "tiny-llava", tmp_path / "checkpoints", tmp_path / "reports")
    assert not (tmp_path / "reports").exists()
