"""The shipped samples are what the recipe draws today, and other tools can read them."""

import json

import datasets
from PIL import Image

from halfv_data import TASKS, fingerprint, load_samples, scenes
from halfv_data.load import DEFAULT
from halfv_data.ship import COUNT, SEED, card, ship


def test_shipped_samples_equal_the_recipe():
    drawn, shipped = list(scenes(COUNT, SEED, "calibration")), load_samples()
    assert shipped == drawn  # pixels, question, answer, task, objects
    assert fingerprint(shipped) == fingerprint(drawn)


def test_shipped_folder_is_complete_and_small():
    files = {file.name for file in DEFAULT.iterdir()}
    assert files == {f"{i:03d}.png" for i in range(COUNT)} | {"metadata.jsonl", "README.md"}
    assert sum(file.stat().st_size for file in DEFAULT.iterdir()) < 3 * 10**6
    for name in ("000.png", "099.png"):
        with Image.open(DEFAULT / name) as image:
            assert image.mode == "RGB"


def test_the_card_is_current():
    assert (DEFAULT / "README.md").read_text() == card(list(scenes(COUNT, SEED)), SEED)
    assert all(f"| {task} | 1" in (DEFAULT / "README.md").read_text() for task in TASKS)  # 11 or 12 each


def test_datasets_opens_the_shipped_folder(tmp_path):
    rows = datasets.load_dataset("imagefolder", data_dir=str(DEFAULT), split="train", cache_dir=str(tmp_path))
    assert rows.num_rows == COUNT
    samples = load_samples()
    for index in (0, 57):
        row = rows[index]
        assert row["image"].convert("RGB").tobytes() == samples[index].image.tobytes()
        assert (row["question"], row["answer"]) == (samples[index].question, samples[index].answer)
        assert json.loads(row["objects"]) == samples[index].objects


def test_shipping_again_writes_the_same_bytes(tmp_path):
    ship(tmp_path / "new", count=4)
    assert load_samples(tmp_path / "new") == load_samples()[:4]
    first = {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}
    ship(tmp_path / "new", count=4)
    assert {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()} == first
