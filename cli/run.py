"""``halfv run``: ask an accelerated model about a picture, or many questions from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfv_cli.data_options import ColumnNames, Config, Images, SkipBad, Split, Turns, reading
from halfv_cli.options import MODEL_HELP, Device, Dtype
from halfv_cli.plans import PlanText, ProfileOrPlan, plan_on, read_plan
from halfv_cli.run_many import check_output, read_questions, run_many

if TYPE_CHECKING:
    from halfv_accel import Plan, Profile
    from halfv_accel.answers import Answer


def run(
    profile: ProfileOrPlan = None,
    plan: PlanText = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeat it for several.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    input: Annotated[
        str | None, typer.Option(help="Instead: many questions, from anything that calibrate --data takes.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where their answers go, a JSON object a line.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --output, and ask again what failed.")] = False,
    columns: ColumnNames = None,
    images: Images = None,
    config: Config = None,
    split: Split = None,
    turns: Turns = "first",
    skip_bad: SkipBad = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time, with --input.")] = 8,
    model: Annotated[str | None, typer.Option(help=f"Needed with --plan, else the profile's own: {MODEL_HELP}")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Ask the untouched model too, and time both.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of the answer.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> int:
    """Answer a question about a picture, or many, with a fraction of the visual tokens."""
    from halfv_accel import HalfVError, Profile
    from halfv_accel.answers import answer
    from halfv_accel.plan_text import describe_plan
    from halfv_accel.prompts import chat_inputs
    from halfv_data import open_image

    _check_options(input, output, resume, image, prompt, compare)
    how = reading(columns, images, config, split, turns, skip_bad)
    if input is None and how != reading():
        raise HalfVError(
            "--columns, --images, --config, --split, --turns and --skip-bad say how --input is read: add it"
        )
    if model is None and plan is not None and profile is None:
        raise HalfVError("--plan names no model, as a profile does: add --model, for example --model tiny-llava")
    asked = read_plan(profile, plan, model)
    name = model or (asked.model.id if isinstance(asked, Profile) else "")
    if input is not None:
        place, (questions, read) = check_output(output, resume), read_questions(input, how)
        vlm, processor, stages = _open(name, model, asked, device, dtype)
        precision = str(vlm.dtype).removeprefix("torch.")
        by = dict(model=name, plan=describe_plan(stages), dtype=precision, max_new_tokens=max_new_tokens)
        return run_many(vlm, processor, stages, questions, place, by, batch_size, as_json, read)
    paths, question, shipped = _question(image or [], prompt)
    pictures = [open_image(path) for path in paths]
    vlm, processor, stages = _open(name, model, asked, device, dtype)
    inputs = chat_inputs(processor, pictures, question, vlm.device, stages.downsample)
    whole = chat_inputs(processor, pictures, question, vlm.device) if stages.shrinks else None
    result = answer(vlm, processor, inputs, stages, max_new_tokens, compare=compare, whole=whole)
    if as_json:
        about: dict[str, Any] = {"profile": None if profile is None else str(profile), "plan": describe_plan(stages)}
        about |= {"images": [str(path) for path in paths], "question": question, "shipped_question": shipped}
        typer.echo(json.dumps({"model": name, **about, **result.as_dict()}))
        return 0
    if shipped:
        typer.secho(f"no --image given, so a shipped question about {paths[0]}:", dim=True)
        typer.echo(question)
    typer.secho(result.text, bold=True)
    for line in _details(result):
        typer.secho(line, dim=True)
    if shipped:
        again = f"--profile {profile}" if profile is not None else f"--model {name} --plan {plan}"
        typer.secho(f'your own: halfv run {again} --image picture.png --prompt "..."', dim=True)
    return 0


def _check_options(
    input: str | None, output: Path | None, resume: bool, image: list[Path] | None, prompt: str | None, compare: bool
) -> None:
    """Options that make sense only together, or not together."""
    from halfv_accel import HalfVError

    if input is None and (output is not None or resume):
        raise HalfVError(f"{'--resume' if output is None else '--output'} is for many questions: add --input")
    given = [name for name, value in (("--image", image), ("--prompt", prompt), ("--compare", compare)) if value]
    if input is not None and given:
        raise HalfVError(f"--input brings pictures and questions: leave {' and '.join(given)} out")


def _open(name: str, given: str | None, asked: Profile | Plan | str, device: str, dtype: str) -> tuple[Any, Any, Plan]:
    """Model, processor and the plan on it; ``given`` is the name of the option, if there was one."""
    from halfv_accel import HalfVError, Profile
    from halfv_accel.downsample import check_shrinks
    from halfv_cli.models import open_model

    try:
        vlm, processor = open_model(name, device, dtype)
    except HalfVError as error:
        if given is None:  # the profile chose that name, so say how to choose another
            raise HalfVError(f"{error}; the profile names this model, --model names another place of it") from error
        raise
    if isinstance(asked, Profile):
        asked.check(vlm)
    plan = plan_on(vlm, asked)
    if plan.shrinks:
        check_shrinks(processor)
    return vlm, processor, plan


def _question(paths: list[Path], prompt: str | None) -> tuple[list[Path], str, bool]:
    """Pictures, question, and whether they are the shipped ones."""
    from halfv_accel import HalfVError
    from halfv_data import shipped_question

    if not paths and prompt is None:
        path, question = shipped_question()
        return [path], question, True
    if not paths:
        raise HalfVError("--prompt needs a picture to ask about: add --image picture.png")
    if not prompt or not prompt.strip():
        raise HalfVError('--image needs a question: add --prompt "What is in this picture?"')
    return paths, prompt, False


def _details(result: Answer) -> list[str]:
    """Tokens after each stage, arithmetic, and the comparison if there is one."""
    steps = [f"{result.visual_tokens} visual tokens"]
    if result.downsampled_to is not None:
        steps.append(f"{result.downsampled_to} downsampled")
    for stage in result.stages:
        what = "frozen" if stage.then == "freeze" else f"{stage.after} kept"
        steps.append(f"{what} from layer {stage.layer} ({stage.name})")
    if result.skipped:
        steps.append(f"not updated in layers {', '.join(map(str, result.skipped))}")
    lines = [
        " -> ".join(steps),
        f"visual tokens that a decoder layer processes, on average: {result.average_visual_tokens:.1f}",
        f"prefill FLOPs of the decoder: {result.flops_ratio:.0%} of untouched",
    ]
    if result.untouched is not None:
        same = "the same answer" if result.untouched.text == result.text else f"answers: {result.untouched.text}"
        lines.append(f"untouched model: {same}")
        ratio = result.untouched.seconds / result.seconds
        lines.append(
            f"time to answer, median of {result.repeats} interleaved runs: "
            f"{result.seconds * 1e3:.0f} ms, untouched {result.untouched.seconds * 1e3:.0f} ms ({ratio:.2f}x)"
        )
    return lines
