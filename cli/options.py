"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL_HELP = (
    "tiny-qwen2.5-vl, tiny-llava (both shipped), a known name such as qwen2.5-vl-7b, a hub id, or a checkpoint folder."
)
AUTO_DTYPE = "auto (as the checkpoint, or float32 on a CPU that does not multiply that natively)"
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help=f"{AUTO_DTYPE}, float32, bfloat16, float16.")]
ProfilePath = Annotated[Path, typer.Option("--profile", help="The profile that calibrate wrote.")]
