"""``halfv run``: ask an accelerated model about a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfv_cli.options import MODEL_HELP, Device, Dtype, ProfilePath

if TYPE_CHECKING:
    from halfv_accel.answers import Answer


def run(
    profile: ProfilePath = Path("profile.json"),
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeat it for several.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    model: Annotated[str | None, typer.Option(help=f"Instead of the profile's own model: {MODEL_HELP}")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Ask the untouched model too, and time both.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of the answer.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Answer a question about a picture with the profile's fraction of the visual tokens."""
    from rich.console import Console

    from halfv_accel import Profile
    from halfv_accel.answers import answer
    from halfv_accel.prompts import chat_inputs
    from halfv_cli.models import open_model

    loaded = Profile.load(profile)
    images, question, shipped = _question(image or [], prompt)
    vlm, processor = open_model(model or loaded.model.id, device, dtype)
    loaded.check(vlm)
    inputs = chat_inputs(processor, images, question, vlm.device)
    result = answer(vlm, processor, inputs, loaded.plan(), max_new_tokens, compare=compare)
    if as_json:
        typer.echo(json.dumps({"question": question, **result.as_dict()}))
        return
    console = Console(highlight=False, soft_wrap=True)
    if shipped:
        console.print(f"[dim]no --image given, so a shipped question about {shipped}:[/dim]")
        console.print(question)
    console.print(f"[bold]{result.text}[/bold]")
    for line in _details(result):
        console.print(f"[dim]{line}[/dim]")
    if shipped:
        console.print(f'[dim]your own: halfv run --profile {profile} --image picture.png --prompt "..."[/dim]')


def _question(paths: list[Path], prompt: str | None) -> tuple[list[Any], str, Path | None]:
    """Pictures, question, and the path of the shipped picture if that one is asked about."""
    from halfv_accel import HalfVError
    from halfv_data import open_image, shipped_question

    if not paths and prompt is None:
        path, question = shipped_question()
        return [open_image(path)], question, path
    if not paths:
        raise HalfVError("--prompt needs a picture to ask about: add --image picture.png")
    if not prompt or not prompt.strip():
        raise HalfVError('--image needs a question: add --prompt "What is in this picture?"')
    return [open_image(path) for path in paths], prompt, None


def _details(result: Answer) -> list[str]:
    """Tokens after each stage, arithmetic, and the comparison if there is one."""
    steps = [f"{result.visual_tokens} visual tokens"]
    for stage in result.stages:
        word = "active" if stage.then == "freeze" else "kept"
        steps.append(f"{stage.after} {word} from layer {stage.layer} ({stage.name})")
    lines = [" -> ".join(steps), f"prefill FLOPs of the decoder: {result.flops_ratio:.0%} of untouched"]
    if result.untouched is not None:
        same = "the same answer" if result.untouched.text == result.text else f"answers: {result.untouched.text}"
        lines.append(f"untouched model: {same}")
        ratio = result.untouched.seconds / result.seconds
        lines.append(
            f"time to answer, median of {result.repeats} interleaved runs: "
            f"{result.seconds * 1e3:.0f} ms, untouched {result.untouched.seconds * 1e3:.0f} ms ({ratio:.2f}x)"
        )
    return lines
