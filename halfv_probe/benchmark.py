"""What measuring costs beside a plain forward pass: ``python -m halfv_probe.benchmark --out reports/probe/cost.json``.

The model is a LLaVA of middling size with random weights and a small vision tower, so that its language model makes up
the time; the pictures are noise. Runs of all kinds take turns, so that another load on the machine meets them alike,
and what is compared are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from halfv_accel.adapters import family_of
from halfv_accel.architectures import PATCH, middling
from halfv_accel.bench.measure import interleave
from halfv_accel.bench.random_weights import assemble
from halfv_accel.bench.results import cpu_name
from halfv_probe.calibration.calibrate import versions
from halfv_probe.measures.capture import watch_boundaries
from halfv_probe.measures.lifecycle import HEAD, boundary_spectra
from halfv_probe.measures.redundancy import layer_redundancy, redundancies
from halfv_probe.states.spectra import spectrum

IMAGE_TOKEN = 1


def build_model(width: int = 1024, layers: int = 12, side: int = 20, seed: int = 0) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights: a Llama decoder, heads of 64, and pictures of ``side`` by ``side`` visual tokens."""
    return assemble(middling(width, layers, side), seed=seed)


def build_inputs(model: LlavaForConditionalGeneration, pictures: int = 3, text: int = 50, seed: int = 0) -> dict:
    """One prompt: a few words, pictures of noise, and the rest of the words."""
    draw = torch.Generator().manual_seed(seed)
    pixels = model.config.vision_config.image_size
    visual = pictures * (pixels // PATCH) ** 2
    words = torch.randint(IMAGE_TOKEN + 1, 1000, (text,), generator=draw)
    ids = torch.cat([words[: text // 2], torch.full((visual,), IMAGE_TOKEN), words[text // 2 :]])[None]
    values = torch.randn(pictures, 3, pixels, pixels, generator=draw)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": values}
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def take_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """One warm-up each, then ``repeats`` rounds in which each runs once: all ``seconds``, ``median`` and ``spread``."""

    def timed(run: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    seconds = interleave({name: partial(timed, run) for name, run in runs.items()}, repeats)
    return {
        "seconds": seconds,
        "median": {name: statistics.median(times) for name, times in seconds.items()},
        "spread": {name: max(times) - min(times) for name, times in seconds.items()},
    }


def spectra_cost(model: PreTrainedModel, inputs: Mapping[str, Any], repeats: int = 5) -> dict[str, Any]:
    """What the spectra of visual, text and all tokens at every boundary add to a forward pass.

    Parameters
    ----------
    model, inputs
        A supported model and one prompt for it.
    repeats : int
        Timed runs of each kind.

    Returns
    -------
    dict
        ``seconds`` of each run of each kind: ``plain``, ``spectra`` (as calibration takes them: the largest
        eigenvalues, the trace, and the geometry) and ``eigvalsh`` (every eigenvalue in float64, straightforwardly);
        ``median`` and ``spread`` (largest - smallest) of each; ``extra`` as a share of the plain median, for both ways
        of measuring; ``faster``, the cost of the second in units of the first; and ``error``, the largest relative
        difference between the eigenvalues that they find.
    """
    found = take_turns(
        {
            "plain": lambda: plain(model, inputs),
            "spectra": lambda: boundary_spectra(model, inputs),
            "eigvalsh": lambda: whole_spectra(model, inputs),
        },
        repeats,
    )
    median = found["median"]
    extra = {name: median[name] / median["plain"] - 1 for name in ("spectra", "eigvalsh")}
    return {
        **found,
        "extra": extra,
        "faster": extra["eigvalsh"] / extra["spectra"],
        "error": _error(model, inputs),
    }


def redundancy_cost(model: PreTrainedModel, inputs: Mapping[str, Any], repeats: int = 3) -> dict[str, Any]:
    """What the KL of all L layers, and that of all suffixes too, cost in plain forwards.

    Parameters as `spectra_cost`.

    Returns
    -------
    dict
        ``seconds``, ``median`` and ``spread`` as there, for ``plain``, ``layers`` (KL of every layer) and ``both`` (of
        every layer and every suffix); ``forwards`` of each, in plain forwards for each layer of the model. Done one
        layer at a time from the start, ``layers`` would cost (L + 1) / L, and ``both`` (2 L + 1) / L.
    """
    found = take_turns(
        {
            "plain": lambda: plain(model, inputs),
            "layers": lambda: layer_redundancy(model, inputs),
            "both": lambda: redundancies(model, inputs),
        },
        repeats,
    )
    median, layers = found["median"], len(family_of(model).layers)
    return {
        **found,
        "forwards": {name: median[name] / median["plain"] / layers for name in ("layers", "both")},
    }


@torch.no_grad()
def plain(model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    model(**inputs, use_cache=False, logits_to_keep=1)


@torch.no_grad()
def whole_spectra(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """All eigenvalues of one prompt's groups at every boundary, each by a full float64 decomposition."""
    family = family_of(model)
    visual = family.visual_positions(inputs["input_ids"])[0]
    found: list[dict[str, Tensor]] = []

    def see(_boundary: int, states: Tensor) -> None:
        groups = {"visual": states[0, visual], "text": states[0, ~visual], "all": states[0]}
        found.append({group: spectrum(tokens).cpu() for group, tokens in groups.items()})

    with watch_boundaries(family.layers, see):
        plain(model, inputs)
    return found


def _error(model: PreTrainedModel, inputs: Mapping[str, Any]) -> float:
    """Largest relative difference between kept eigenvalues and a full decomposition's."""
    (sample,) = boundary_spectra(model, inputs)
    worst = 0.0
    for boundary, groups in enumerate(whole_spectra(model, inputs)):
        for group, expected in groups.items():
            head = expected[:HEAD]
            difference = torch.from_numpy(sample.values[group][boundary, : len(head)]) - head  # type: ignore[index]
            worst = max(worst, float((difference.abs() / head.clamp(min=1e-12 * float(head[0]))).max()))
    return worst


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m halfv_probe.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each kind")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=1024, help="of the language model")
    parser.add_argument("--layers", type=int, default=12, help="of the language model")
    parser.add_argument("--side", type=int, default=20, help="visual tokens along a side of each of three pictures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = build_model(options.width, options.layers, options.side, options.seed).to(options.device)
    inputs = build_inputs(model, seed=options.seed)
    cost = spectra_cost(model, inputs, options.repeats)
    show(cost)
    redundancy = redundancy_cost(model, inputs, options.repeats)
    show_redundancy(redundancy)
    document = {"spectra": cost, "redundancy": redundancy, "provenance": provenance(model, inputs, options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def show(cost: Mapping[str, Any]) -> None:
    """Print a table of the runs."""
    print(f"{'forward':<24}{'median s':>10}{'spread s':>10}{'extra':>8}")
    names = {"plain": "plain", "spectra": "with spectra", "eigvalsh": "with all eigenvalues"}
    for kind, name in names.items():
        extra = f"{cost['extra'][kind]:.2f}x" if kind in cost["extra"] else ""
        print(f"{name:<24}{cost['median'][kind]:>10.3f}{cost['spread'][kind]:>10.3f}{extra:>8}")
    print(
        f"eigenvalues agree within a relative {cost['error']:.0e}; {cost['faster']:.1f} times cheaper than all of them"
    )


def show_redundancy(cost: Mapping[str, Any]) -> None:
    print(f"\n{'KL':<24}{'median s':>10}{'spread s':>10}{'plain forwards a layer':>24}")
    for kind, name in {"plain": "plain forward", "layers": "of every layer", "both": "and of every suffix"}.items():
        forwards = f"{cost['forwards'][kind]:.2f}" if kind in cost["forwards"] else ""
        print(f"{name:<24}{cost['median'][kind]:>10.3f}{cost['spread'][kind]:>10.3f}{forwards:>24}")


def provenance(model: LlavaForConditionalGeneration, inputs: Mapping[str, Tensor], options: argparse.Namespace) -> dict:
    visual = int((inputs["input_ids"] == IMAGE_TOKEN).sum())
    text = model.config.text_config
    cuda = model.device.type == "cuda"
    return {
        "command": "python -m halfv_probe.benchmark",
        "versions": versions(),
        "machine": torch.cuda.get_device_name() if cuda else cpu_name(),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seed": options.seed,
        "repeats": options.repeats,
        "hidden_size": text.hidden_size,
        "layers": text.num_hidden_layers,
        "visual_tokens": visual,
        "text_tokens": inputs["input_ids"].shape[1] - visual,
        "eigenvalues": HEAD,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
