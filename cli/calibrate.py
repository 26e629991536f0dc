"""``halfv calibrate``: from a model and 100 samples to profile.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from halfv_cli.options import MODEL_HELP, Device, Dtype

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from halfv_accel import Profile


CLOSE_AGREEMENT = 0.9  # below it, the user hears how to trade speed for agreement


def calibrate(
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    data: Annotated[
        str,
        typer.Option(help="default (shipped), a folder of pictures with prompts, a .jsonl file, or a data set name."),
    ] = "default",
    samples: Annotated[int, typer.Option(min=1, help="How many samples to measure on.")] = 100,
    seed: Annotated[int, typer.Option(help="Which samples are drawn when there are more.")] = 0,
    fidelity: Annotated[
        Literal["paper", "reference"], typer.Option(help="Which to follow where the public code differs.")
    ] = "paper",
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path, typer.Option(help="Where the profile goes.")] = Path("profile.json"),
) -> None:
    """Measure a model and choose where its visual tokens are reduced; writes profile.json."""
    from rich.console import Console

    from halfv_accel.files import check_writable
    from halfv_cli.models import lasting_name, open_model
    from halfv_data import fingerprint, load_samples
    from halfv_probe.calibration import calibrate as measure
    from halfv_probe.prompts import Prompts

    check_writable(out)
    started = time.perf_counter()
    loaded = load_samples(data, samples, seed)
    vlm, processor = open_model(model, device, dtype)
    console = Console(stderr=True)
    if len(loaded) < samples:
        typer.echo(
            f"{data} holds {len(loaded)} samples, fewer than the {samples} asked for: using all of them", err=True
        )
    with _progress(console) as show:
        profile = measure(
            vlm,
            Prompts(processor, loaded, vlm.device),
            model_id=lasting_name(model),
            data=data,
            data_fingerprint=fingerprint(loaded),
            seed=seed,
            fidelity=fidelity,
            progress=show,
        )
    profile.save(out)
    _print_choices(profile, out, time.perf_counter() - started)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """One bar a step; yields ``show(step, done, total)``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step, total=total)
            progress.update(bars[step], completed=done)

        yield show


def _print_choices(profile: Profile, out: Path, seconds: float) -> None:
    """The table at the end: what was chosen, and why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    evidence = profile.evidence
    title = f"{profile.model.id}: {profile.model.num_layers} layers, {profile.calibration.samples} samples"
    table = Table("choice", "value", "why", title=Text(title))  # Text: a path may look like markup
    source = "fixed" if profile.calibration.fidelity == "reference" else "elbow of the visual spectrum"
    table.add_row("k (eigenvalues)", str(evidence.k), source)
    table_9 = "" if profile.ssr.mode == "none" else " (Table 9)"
    table.add_row("IVR layer", str(profile.ivr.layer), evidence.choices.get("ivr", ""))
    table.add_row(
        "IVR keeps", f"{profile.ivr.retention:.0%}", f"{profile.ivr.anchor_ratio:.0%} of them anchors{table_9}"
    )
    table.add_row("SSR mode", profile.ssr.mode, evidence.choices.get("mode", ""))
    if profile.ssr.layer is not None:
        table.add_row("SSR layer", str(profile.ssr.layer), evidence.choices.get("ssr", ""))
    if profile.ssr.retention is not None:
        table.add_row("SSR keeps", f"{profile.ssr.retention:.0%}", "of the original visual tokens (Table 9)")
    if evidence.agreement is not None:
        table.add_row("agreement", f"{evidence.agreement:.0%}", "first answer tokens that the plan leaves unchanged")
    Console().print(table)
    if not evidence.stable:
        typer.echo(
            "warning: this model shows no three stages on these samples; the plan is a cautious fallback", err=True
        )
    if evidence.agreement is not None and evidence.agreement < CLOSE_AGREEMENT:
        changed = f"{1 - evidence.agreement:.0%} of the first answer tokens change"
        typer.echo(f"note: {changed}; to keep more visual tokens, raise the retentions in {out}", err=True)
    typer.echo(f"wrote {out} in {seconds:.0f} s; next: halfv run --profile {out}")
