"""``halfv calibrate``: from a model and 100 samples to profile.json."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from halfv_cli.calibrate_methods import CLOSE_AGREEMENT, MethodName, asked_of, check_options, print_method
from halfv_cli.data_options import ColumnNames, Config, Data, Images, SkipBad, Split, Turns, reading, told
from halfv_cli.options import MODEL_HELP, Device, Dtype
from halfv_cli.progress import progress
from halfv_cli.samples import told_first, usable_samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from halfv_accel import Profile
    from halfv_accel.settings import Goal

NULL_SAMPLES = 8  # curves of random weights hardly differ between samples
NULL_BELOW = 1e9  # parameters


def calibrate(
    context: typer.Context,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    method: Annotated[
        MethodName, typer.Option(help="Whose plan: HalfV's own, or that of another method that has to be measured.")
    ] = "halfv",
    data: Data = "default",
    columns: ColumnNames = None,
    images: Images = None,
    config: Config = None,
    split: Split = None,
    turns: Turns = "first",
    skip_bad: SkipBad = False,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="How many samples to measure on; 100, for a goal more.", show_default=False),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Fastest plan that is shown to lose at most this share of answers, e.g. 0.02.")
    ] = None,
    target_flops: Annotated[
        float | None, typer.Option(help="Most faithful plan within this share of the prefill FLOPs, e.g. 0.45.")
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            help="Of vtw: KL of the next token, in nats, that counts as no difference; 0.003.", show_default=False
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of shortv: how many layers skip visual tokens; the share of Table 10 (19 of 32, Qwen 19 of 28).",
            show_default=False,
        ),
    ] = None,
    retention: Annotated[
        float | None,
        typer.Option(
            help="Of adavtp and erank_*: visual tokens kept / all; the default of `halfv methods`.", show_default=False
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the bound behind --max-drop.")] = 0.99,
    k: Annotated[
        str, typer.Option("--k", help="Eigenvalues in the entropy: elbow, a number, or a share of the energy (0.9).")
    ] = "elbow",
    fidelity: Annotated[
        Literal["paper", "reference"], typer.Option(help="Which to follow where the public code differs.")
    ] = "paper",
    latency: Annotated[bool, typer.Option("--latency", help="Also time what pruning saves.")] = False,
    null: Annotated[
        bool | None,
        typer.Option(
            "--null/--no-null",
            help="Also measure the same architecture with random weights; by default below 1 B parameters.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted calibration was.")] = False,
    seed: Annotated[int, typer.Option(help="Which samples are drawn when there are more, and the bootstrap.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path, typer.Option(help="Where the profile goes.")] = Path("profile.json"),
) -> None:
    """Measure a model and choose where its visual tokens are reduced; writes profile.json."""
    check_options(context, method)
    goal, eigenvalues = _goal(max_drop, target_flops, confidence), _k(k)
    other = asked_of(method, max_kl, layers, retention, target_flops)
    from halfv_accel.files import check_writable
    from halfv_accel.settings import Settings
    from halfv_cli.models import lasting_name, open_model
    from halfv_data import fingerprint, load_data
    from halfv_probe.calibration.calibrate import calibrate as measure
    from halfv_probe.calibration.journal import Journal, header
    from halfv_probe.calibration.measurements import CURVE_SAMPLES
    from halfv_probe.calibration.search import usual_samples
    from halfv_probe.methods.calibrate import calibrate_method
    from halfv_probe.trials.prompts import Prompts

    check_writable(out)
    started = time.perf_counter()
    wanted = samples or (usual_samples(goal) if other is None else CURVE_SAMPLES)
    how = reading(columns, images, config, split, turns, skip_bad)
    loaded = load_data(data, wanted, seed, how)
    vlm, processor = open_model(model, device, dtype)
    usable = usable_samples(processor, loaded, skip_bad)
    if len(loaded.samples) < wanted:
        typer.echo(f"{data} holds {len(loaded.samples)} samples, fewer than {wanted}: using all of them", err=True)
    place = out.with_name(out.name + ".journal")
    settings = Settings(
        model_id=lasting_name(model),
        data=data,
        data_fingerprint=fingerprint(usable),
        reading=told(how),
        seed=seed,
        fidelity=fidelity,
        k=eigenvalues,
        goal=goal,
        latency=latency,
        null_samples=NULL_SAMPLES if other is None and _wants_null(vlm, null) else 0,
    )
    if place.exists() and not resume:
        typer.echo(f"note: {place} of an earlier calibration is overwritten; --resume would go on with it", err=True)
    journal = Journal(place, header(vlm, settings, batch_size), resume)
    try:
        with progress() as show:
            prompts = Prompts(processor, usable, vlm.device, batch_size)
            show = told_first(str(loaded.summary), show)
            if other is None:
                profile = measure(vlm, prompts, settings, journal=journal, progress=show)
            else:
                profile = calibrate_method(vlm, prompts, other, settings, journal=journal, progress=show)
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; {place} keeps what was measured: the same command with --resume goes on", err=True)
        raise
    finally:
        journal.close()
    profile.save(out)
    journal.remove()
    tell = _print_choices if other is None else print_method
    tell(profile, out, time.perf_counter() - started)


def _goal(max_drop: float | None, target_flops: float | None, confidence: float) -> Goal:
    """What the options ask for."""
    from halfv_accel import HalfVError
    from halfv_accel.settings import Goal

    if max_drop is not None and target_flops is not None:
        raise HalfVError("--max-drop and --target-flops are two goals: give one of them")
    for name, value in (("--max-drop", max_drop), ("--target-flops", target_flops), ("--confidence", confidence)):
        if value is not None and not 0.001 <= value < 1:
            raise HalfVError(f"{name} is {value:g}: give a share from 0.001 to 1, for example 0.02 for 2 %")
    if max_drop is not None:
        return Goal(kind="max_drop", value=max_drop, confidence=confidence)
    if target_flops is not None:
        return Goal(kind="target_flops", value=target_flops, confidence=confidence)
    return Goal(confidence=confidence)


def _wants_null(vlm: PreTrainedModel, asked: bool | None) -> bool:
    """As asked; without a word, where a second model of the size is no burden."""
    return vlm.num_parameters() < NULL_BELOW if asked is None else asked


def _k(text: str) -> int | float | Literal["elbow"]:
    from halfv_accel import HalfVError

    if text == "elbow":
        return "elbow"
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if 0 < number < 1:
        return number
    if number >= 1 and number == int(number):
        return int(number)
    raise HalfVError(f"--k is {text!r}: give elbow, a whole number of eigenvalues, or a share of the energy like 0.9")


def _print_choices(profile: Profile, out: Path, seconds: float) -> None:
    """The table at the end: what was chosen, how sure that is, and why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    evidence = profile.evidence
    title = f"{profile.model.id}: {profile.model.num_layers} layers, {profile.calibration.samples} samples"
    table = Table("choice", "value", "sure", "why", title=Text(title))  # Text: a path may look like markup
    for row in _rows(profile):
        table.add_row(*row)
    Console().print(table)
    if not evidence.stable:
        typer.echo("warning: this model's entropy shows no three stages on these samples", err=True)
        if evidence.goal.kind == "paper":
            typer.echo("warning: the plan is a cautious fallback", err=True)
    if evidence.agreement is not None and evidence.agreement < CLOSE_AGREEMENT:
        changed = f"{1 - evidence.agreement:.0%} of the replies change"
        typer.echo(f"note: {changed}; for a plan that changes fewer, calibrate with --max-drop", err=True)
    typer.echo(f"wrote {out} in {seconds:.0f} s; next: halfv run --profile {out}, halfv report --profile {out}")


def _rows(profile: Profile) -> Iterator[tuple[str, str, str, str]]:
    """Choice, value, share of resamples in which it won, reason."""
    evidence, (ivr, ssr) = profile.evidence, profile.halfv

    def sure(name: Literal["ivr", "ssr", "mode"], value: object) -> str:
        share = evidence.votes.get(name, {}).get(str(value))
        return "" if share is None else f"{share:.0%}"

    why = evidence.choices.get
    yield "k (eigenvalues)", str(evidence.k), "", evidence.k_source
    yield "IVR layer", str(ivr.layer), sure("ivr", ivr.layer), why("ivr", "")
    yield "IVR keeps", f"{ivr.retention:.0%}", "", f"{ivr.anchor_ratio:.0%} of them anchors"
    yield "SSR mode", ssr.mode, sure("mode", ssr.mode), why("mode", "")
    if ssr.layer is not None:
        yield "SSR layer", str(ssr.layer), sure("ssr", ssr.layer), why("ssr", "")
    if ssr.retention is not None:
        yield "SSR keeps", f"{ssr.retention:.0%}", "", "of the original visual tokens"
    yield "curve alone", "", "", why("curve", "")
    if evidence.flops is not None:
        yield "prefill FLOPs", f"{evidence.flops:.0%}", "", why("goal", "of untouched")
    if evidence.agreement is not None and evidence.drop is not None and evidence.drop_bound is not None:
        bound = f"at most {evidence.drop_bound:.1%} with this confidence"
        chosen_on = "" if evidence.goal.kind == "max_drop" else ", if this plan had been given (it was chosen on them)"
        yield "answers lost", f"{evidence.drop:.1%}", f"{evidence.goal.confidence:.0%}", bound + chosen_on
        yield "agreement", f"{evidence.agreement:.0%}", "", "replies (first 8 tokens) that stay the untouched model's"
