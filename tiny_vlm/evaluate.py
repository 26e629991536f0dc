"""How well a model answers, and what it loses without its picture: ``python -m tiny_vlm.evaluate tiny-qwen2.5-vl``.

Questions are asked as a user asks them: chat template, processor, ``generate``, one at a time, and the whole answer
must match. Two controls show that the picture matters and how deep: a grey picture in place of the right one, and
visual tokens that are invisible from some decoder layer on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfv_data.samples import Sample, fingerprint, scenes
from tiny_vlm import NAMES, checkpoint, load

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

GREY = (128, 128, 128)
Accelerated = Callable[["PreTrainedModel"], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Scores:
    """Share of questions answered exactly, per task and as the mean over tasks; ``counts`` are questions per task."""

    accuracy: dict[str, float]
    macro: float
    n: int
    counts: dict[str, int]


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Iterable[Sample],
    *,
    blank_image: bool = False,
    without_visual_from: int | None = None,
    accelerated: Accelerated | None = None,
    max_new_tokens: int = 8,
    batch_size: int = 1,
) -> Scores:
    """Ask every sample's question and compare answers, ignoring case and outer blanks.

    Parameters
    ----------
    blank_image : bool
        Show a grey picture of the same size.
    without_visual_from : int, optional
        From this decoder layer on no text token sees a visual one (a slow reference, see ``tiny_vlm.invisible``).
    accelerated : callable, optional
        Makes a context in which the model is asked, e.g. ``lambda model: halfv_accel.accelerate(model, profile)``.
    batch_size : int
        Questions at a time, padded on the left. Reported figures use 1.

    Raises
    ------
    ValueError
        If there are no samples, or one has no answer to compare with.
    """
    hits, asked = Counter[str](), Counter[str]()
    with ExitStack() as contexts:
        if accelerated is not None:
            contexts.enter_context(accelerated(model))
        if without_visual_from is not None:
            from tiny_vlm.invisible import invisible_visual_tokens

            contexts.enter_context(invisible_visual_tokens(model, without_visual_from))
        for batch in _batches(samples, batch_size):
            use_cache = without_visual_from is None
            given = answers(model, processor, batch, blank_image, max_new_tokens, use_cache)
            for sample, answer in zip(batch, given, strict=True):
                asked[sample.task] += 1
                hits[sample.task] += _matches(answer, sample)
    if not asked:
        raise ValueError("there are no samples to evaluate on: give at least one")
    accuracy = {task: hits[task] / asked[task] for task in sorted(asked)}
    return Scores(accuracy, sum(accuracy.values()) / len(accuracy), asked.total(), dict(sorted(asked.items())))


def answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: Sequence[Sample],
    blank_image: bool = False,
    max_new_tokens: int = 8,
    use_cache: bool = True,
) -> list[str]:
    """Greedy answers to a batch of questions, decoded without special tokens."""
    from PIL import Image

    images = [Image.new("RGB", s.image.size, GREY) if blank_image else s.image for s in batch]
    texts = [prompt(processor, s.question) for s in batch]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    inputs = inputs.to(model.device, dtype=model.dtype)  # integers keep their type
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, use_cache=use_cache)
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def prompt(processor: ProcessorMixin, question: str) -> str:
    """The chat template around one picture and one question."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _matches(answer: str, sample: Sample) -> bool:
    if sample.answer is None:
        raise ValueError(f"the sample {sample.question!r} has no answer: evaluation needs samples with answers")
    return answer.strip().lower() == sample.answer.strip().lower()


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    if size <= 0:
        raise ValueError(f"batch_size is {size}: it must be at least 1")
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# --------------------------------------------------------------------------------------------------------- command line


def conditions(layers: int, profile: Path | None) -> dict[str, dict[str, Any]]:
    """Name and options of every evaluation in the report."""
    found: dict[str, dict[str, Any]] = {
        "untouched": {},
        "grey picture": {"blank_image": True},
        "no visual tokens from layer 2": {"without_visual_from": 2},
        f"no visual tokens from layer {layers // 2}": {"without_visual_from": layers // 2},
    }
    if profile is not None:
        import halfv_accel

        found[f"accelerated by {profile.name}"] = {"accelerated": lambda model: halfv_accel.accelerate(model, profile)}
    return found


def table(results: dict[str, Scores]) -> str:
    """Markdown, one row a task and one column a condition."""
    first = next(iter(results.values()))
    lines = ["| task (n) | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for task, count in first.counts.items():
        cells = [f"{scores.accuracy[task]:.3f}" for scores in results.values()]
        lines.append(f"| {task} ({count}) | " + " | ".join(cells) + " |")
    lines.append(f"| **macro** ({first.n}) | " + " | ".join(f"{s.macro:.3f}" for s in results.values()) + " |")
    return "\n".join(lines)


def provenance(model: PreTrainedModel, samples: Sequence[Sample], split: str, seed: int) -> dict[str, Any]:
    """Where the numbers come from."""
    packages = ("torch", "transformers", "pillow", "numpy")
    return {
        "samples": {"split": split, "seed": seed, "n": len(samples), "fingerprint": fingerprint(samples)},
        "model": {"class": type(model).__name__, "dtype": str(model.dtype), "device": str(model.device)},
        "attention": model.config.text_config._attn_implementation,
        "batch_size": 1,
        "repeats": 1,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in packages},
    }


def weights_fingerprint(name: str) -> str:
    """Sixteen hex digits over the weight file of an embedded model: which checkpoint a report speaks of."""
    return hashlib.sha256((checkpoint(name) / "model.safetensors").read_bytes()).hexdigest()[:16]


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _watched(samples: Sequence[Sample], name: str) -> Iterator[Sample]:
    """The samples, with progress on stderr."""
    started = time.perf_counter()
    for index, sample in enumerate(samples):
        if index % 100 == 0:
            print(f"{name}: {index}/{len(samples)}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        yield sample


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tiny_vlm.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("--samples", type=int, default=900, help="held-out scenes (default 900, 100 a task)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", help="auto (see load), float32, bfloat16")
    parser.add_argument("--profile", type=Path, help="profile.json: evaluate the accelerated model, too")
    parser.add_argument("--out", type=Path, required=True, help="JSON report")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    samples = list(scenes(args.samples, args.seed, "heldout"))
    model, processor = load(args.model, args.device, args.dtype)
    results: dict[str, Scores] = {}
    for name, options in conditions(model.config.text_config.num_hidden_layers, args.profile).items():
        results[name] = evaluate(model, processor, _watched(samples, name), **options)
    origin = provenance(model, samples, "heldout", args.seed)
    origin["model"]["weights"] = weights_fingerprint(args.model)
    report = {name: asdict(scores) for name, scores in results.items()}
    write_json(args.out, {"model": args.model, "results": report, "provenance": origin})
    print(table(results))


if __name__ == "__main__":
    main()
