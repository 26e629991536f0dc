"""`python -m halfv_accel.selfcheck MODEL`: a table of checks, and exit status 0 if HalfV is exact on the model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.utils import logging

from halfv_accel.downsample import Downsample
from halfv_accel.errors import HalfVError
from halfv_accel.models import load_model
from halfv_accel.names import named_plan
from halfv_accel.prompts import batch_inputs
from halfv_accel.selfcheck import Check, selfcheck

QUESTIONS = (
    ((112, 140), "What is in the picture?"),
    ((168, 112), "Which colours does it have, and where is the red one?"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a model, check it, print a table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m halfv_accel.selfcheck", description=__doc__.split(": ", 1)[1])
    parser.add_argument("model", help="a known name such as qwen2.5-vl-7b, a hub id, or a checkpoint folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    parser.add_argument("--plan", help="check this plan, such as fastv:2:0.25, instead of HalfV's own method")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, processor = load_model(options.model, options.device, options.dtype)
        plan = None if options.plan is None else named_plan(options.plan, model)
        downsample = None if plan is None else plan.downsample
        prompts = random_prompts(processor, model.device, downsample)
        checks = selfcheck(model, *prompts, plan=None if plan is None else plan.inside)
    except HalfVError as error:
        print(f"halfv: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("\n".join(table(checks)))
    print(verdict(model, checks))
    return 0 if all(check.ok for check in checks) else 1


def random_prompts(
    processor: ProcessorMixin, device: torch.device | str = "cpu", downsample: Downsample | None = None
) -> list[dict[str, Any]]:
    """Short questions about small random pictures: one alone, and two of unequal length in a batch.

    Without a padding token there is no batch. Pictures may be shrunk as a plan says.

    Raises
    ------
    HalfVError
        If the processor cannot prepare a single prompt.
    """
    draw = torch.Generator().manual_seed(0)
    turns = [([random_picture(height, width, draw)], question) for (height, width), question in QUESTIONS]
    prompts = [dict(batch_inputs(processor, turns[:1], device, downsample))]
    if processor.tokenizer.pad_token_id is not None:
        prompts.append(dict(batch_inputs(processor, turns, device, downsample)))
    return prompts


def random_picture(height: int, width: int, draw: torch.Generator) -> Any:
    """Squares of 14 pixels in random colours, as a numpy array [height, width, 3] of bytes."""
    squares = torch.randint(256, (height // 14, width // 14, 3), generator=draw, dtype=torch.uint8)
    return squares.repeat_interleave(14, dim=0).repeat_interleave(14, dim=1).numpy()


def table(checks: Sequence[Check]) -> list[str]:
    """One line per check."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'check':{width}}  result  {'error':>9}  {'tolerance':>9}  {'effect':>9}"]
    for check in checks:
        effect = f"{'-':>9}" if check.effect is None else f"{check.effect:9.1e}"
        result = "ok" if check.ok else "FAILED"
        lines.append(f"{check.name:{width}}  {result:6}  {check.error:9.1e}  {check.tolerance:9.1e}  {effect}")
    return lines


def verdict(model: Any, checks: Sequence[Check]) -> str:
    """The last line."""
    kind = f"{type(model).__name__} in {str(model.dtype).removeprefix('torch.')} on {model.device.type}"
    failed = sum(not check.ok for check in checks)
    half = torch.finfo(model.dtype).bits < 32
    advice = "; --dtype float32 tells an error from a rounding" if half else ""
    if not failed:
        return (
            f"HalfV is exact{' up to rounding' if half else ''} on this {kind}: all {len(checks)} checks passed{advice}"
        )
    return f"HalfV is NOT exact on this {kind}: {failed} of {len(checks)} checks failed{advice}"


if __name__ == "__main__":
    sys.exit(main())
