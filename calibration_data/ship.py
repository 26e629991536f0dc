"""Draw the shipped samples into ``default/``: ``python -m halfv_data.ship [FOLDER]``.

The folder is what ``datasets`` calls an imagefolder: PNG files, a metadata.jsonl, and a card. Drawing it again gives
the same pixels; a test holds the shipped files to that.
"""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from halfv_data.load import DEFAULT, METADATA, SHIPPED_SEED
from halfv_data.questions import TASKS
from halfv_data.samples import Sample, scenes

COUNT, SEED = 100, SHIPPED_SEED

CARD = """---
license: apache-2.0
language: en
task_categories:
- visual-question-answering
pretty_name: HalfV calibration scenes
size_categories:
- n<1K
---
# HalfV calibration scenes

{count} pictures of coloured shapes and two-digit numbers on a 3 x 3 grid (192 x 192 px, texture and clutter behind),
each with one question and its answer. HalfV calibrates on them when it is given no samples of your own.

Fields of `metadata.jsonl`: `file_name`, `question`, `answer`, `task`, and `objects`, a JSON text that lists what was
drawn (cell 0 to 8 row by row, shape and colour or number, place in pixels). Every answer follows from `objects`.

```python
from datasets import load_dataset

load_dataset("imagefolder", data_dir="calibration_data/default", split="train")
```
(`imagefolder` calls the only split it finds "train". Nothing was trained on these pictures.)

## How it was made
`python -m halfv_data.ship` draws it from split "calibration", seed {seed}: no photograph, no font, no model and no
person is involved, and the same pixels come out on every machine. The split is part of the random seed, so none of
these pictures is among those that the embedded models were trained or judged on.

| task | samples | example |
|---|---|---|
{table}

## What it is not
It is not a benchmark, and not a stand-in for photographs, documents or video. An embedded model is measured well with
it, because it was trained on such scenes; a model trained on photographs is better calibrated with pictures and prompts
like those it will see in use. Wording is a fixed set of English templates. Colour, shape and place are all there is to
know.

## Licence
Apache-2.0, as HalfV itself.
"""


def ship(folder: Path, count: int = COUNT, seed: int = SEED) -> list[Sample]:
    """Write the samples, their metadata and their card; return them.

    Pictures of an earlier run are overwritten; other files in the folder are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = list(scenes(count, seed, "calibration"))
    lines = []
    for index, sample in enumerate(samples):
        name = f"{index:03d}.png"
        (folder / name).write_bytes(smallest_png(sample.image))
        fields = {"question": sample.question, "answer": sample.answer, "task": sample.task}
        lines.append(json.dumps({"file_name": name, **fields, "objects": json.dumps(sample.objects)}))
    (folder / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(samples, seed), encoding="utf-8")
    return samples


def smallest_png(image: Image.Image) -> bytes:
    """The picture as PNG, with whichever of zlib's strategies (default, filtered, Huffman only) packs it best."""
    packed = []
    for strategy in (0, 1, 2):
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=9, compress_type=strategy)
        packed.append(file.getvalue())
    return min(packed, key=len)


def card(samples: list[Sample], seed: int) -> str:
    """The dataset card, with one example for each task."""
    counts = Counter(sample.task for sample in samples)
    examples = {sample.task: f"{sample.question} {sample.answer}" for sample in reversed(samples)}
    table = "\n".join(f"| {task} | {counts[task]} | {examples[task]} |" for task in TASKS if task in counts)
    return CARD.format(count=len(samples), seed=seed, table=table)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    ship(folder)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{COUNT} samples in {folder}, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
