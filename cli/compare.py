"""``halfv compare``: all methods on the same samples, prompts and budgets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halfv_cli.data_options import ColumnNames, Config, Data, Images, SkipBad, Split, Turns, reading, told
from halfv_cli.options import MODEL_HELP, Device, Dtype
from halfv_cli.plans import plan_on, read_plan
from halfv_cli.progress import progress
from halfv_cli.samples import told_first, usable_samples

if TYPE_CHECKING:
    from halfv_accel import Plan, Profile
    from halfv_probe.compare.entrants import Entrant

    Given = list[tuple[str, str, Profile | Plan | str]]  # kind, title, and what was asked for

JOURNAL = "compare.journal"
WIDE = 200  # characters


def compare(
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    out: Annotated[Path, typer.Option(help="Folder for results and report; it is made.", show_default=False)],
    data: Data = "default",
    columns: ColumnNames = None,
    images: Images = None,
    config: Config = None,
    split: Split = None,
    turns: Turns = "first",
    skip_bad: SkipBad = False,
    methods: Annotated[
        str, typer.Option(help="all; names that halfv methods lists, with commas; or none beside --plan and --profile.")
    ] = "all",
    retention: Annotated[str, typer.Option(help="Budgets: visual tokens kept / all.")] = "0.5,0.25,0.111",
    plan: Annotated[
        list[str] | None,
        typer.Option(help="Another plan, as it is, in words or a plan.json; once for each.", show_default=False),
    ] = None,
    profile: Annotated[
        list[Path] | None, typer.Option(help="A profile that calibrate wrote; once for each.", show_default=False)
    ] = None,
    match: Annotated[
        Literal["tokens", "flops"],
        typer.Option(help="What is equal at one budget: average visual tokens over layers, or prefill FLOPs."),
    ] = "tokens",
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Random choice, downsampling, and nothing at half depth.")
    ] = True,
    samples: Annotated[int, typer.Option(min=1, help="How many samples to ask; more tell more methods apart.")] = 100,
    seed: Annotated[int, typer.Option(help="Which samples are drawn when there are more, and the bootstrap.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted comparison was.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Run all methods on the same samples at the same budgets; writes a report, a table of all replies, a picture."""
    shares, names, given = _shares(retention), _methods(methods), _given(plan, profile, model)
    from halfv_accel.settings import Settings
    from halfv_cli.models import lasting_name, open_model
    from halfv_data import fingerprint, load_data
    from halfv_probe.calibration.journal import Journal, header
    from halfv_probe.calibration.measurements import Measurements
    from halfv_probe.compare import report
    from halfv_probe.compare.entrants import all_entrants
    from halfv_probe.compare.run import ask_untouched, typical_prompt
    from halfv_probe.compare.run import compare as run
    from halfv_probe.trials.prompts import Prompts

    _check_folder(out)
    started = time.perf_counter()
    how = reading(columns, images, config, split, turns, skip_bad)
    loaded = load_data(data, samples, seed, how)
    vlm, processor = open_model(model, device, dtype)
    others = _on(vlm, given)
    usable = usable_samples(processor, loaded, skip_bad)
    if len(loaded.samples) < samples:
        typer.echo(f"{data} holds {len(loaded.samples)} samples, fewer than {samples}: using all of them", err=True)
    place = out / JOURNAL
    if place.exists() and not resume:
        typer.echo(f"note: {place} of an earlier comparison is overwritten; --resume would go on with it", err=True)
    # Samples and plans are in the journal's keys, so that a comparison can go on with more of both.
    asked_for = {"command": "halfv compare", **header(vlm, Settings(), batch_size)}
    journal = Journal(place, asked_for, resume, "compare")
    try:
        with progress() as show:
            prompts = Prompts(processor, usable, vlm.device, batch_size)
            measure = Measurements(vlm, prompts, "paper", journal, told_first(str(loaded.summary), show))
            measure.verify()
            out.mkdir(parents=True, exist_ok=True)
            asked = ask_untouched(measure)
            typical = typical_prompt(measure, asked)
            entrants, refused = all_entrants(typical, names, shares, match, others, baselines)
            results, failed = run(measure, entrants, asked)
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; {place} keeps what was measured: the same command with --resume goes on", err=True)
        raise
    finally:
        journal.close()
    from halfv_accel.bench.results import provenance

    facts = provenance(
        vlm,
        command="halfv compare",
        model=lasting_name(model),
        data=data,
        reading=None if (read := told(how)) is None else read.model_dump(),
        data_fingerprint=fingerprint(usable),
        samples=len(usable),
        seed=seed,
        methods=names,
        retention=shares,
        match=match,
        baselines=baselines,
        batch_size=batch_size,
        typical_visual_tokens=typical.visual,
        typical_text_tokens=typical.text,
    )
    table = report.write(results, [*refused, *failed], facts, out, match, seed)
    journal.remove()
    _print(table, [*refused, *failed])
    typer.echo(f"wrote {out} in {time.perf_counter() - started:.0f} s; next: read {out / 'report.md'}", err=True)


def _shares(text: str) -> list[float]:
    from halfv_accel import HalfVError
    from halfv_probe.compare.entrants import check_retentions

    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        raise HalfVError(f"--retention is {text[:80]!r}: give shares with commas, such as 0.5,0.25") from None
    check_retentions(shares)
    return shares


def _methods(text: str) -> list[str]:
    from halfv_accel.published import METHODS
    from halfv_probe.compare.entrants import known_methods

    if text in ("all", "none"):
        return list(METHODS) if text == "all" else []
    return known_methods(part.strip() for part in text.split(","))


def _given(plans: list[str] | None, profiles: list[Path] | None, model: str) -> Given:
    """Plans and profiles, as far as they can be read before a model is opened."""
    asked: Given = [("plan", text, read_plan(None, text, model)) for text in plans or []]
    return asked + [("profile", str(path), read_plan(path, None, model)) for path in profiles or []]


def _on(vlm: Any, given: Given) -> list[Entrant]:
    """The same on the opened model.

    Raises
    ------
    HalfVError
        If a profile is another model's, or a plan names a layer that the model does not have.
    """
    from halfv_accel import Profile
    from halfv_probe.compare.entrants import Entrant

    found = []
    for kind, title, asked in given:
        if isinstance(asked, Profile):
            asked.check(vlm)
        plan = plan_on(vlm, asked)
        plan.check_depth(vlm.config.get_text_config().num_hidden_layers)
        found.append(Entrant(kind, title, None, plan))
    return found


def _check_folder(out: Path) -> None:
    """Fail before long work if the folder could not be made or written into; it is not made yet."""
    from halfv_accel import HalfVError
    from halfv_accel.files import check_writable

    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise HalfVError(f"--out is {str(out)[-80:]}, and {there.name[-80:]} is a file: name a folder")
    check_writable(there / JOURNAL)


def _print(rows: list[dict[str, str]], failures: list[tuple[str, str]]) -> None:
    """The report's table, and who is not in it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:  # a file has no width
        console = Console(width=WIDE)
    if rows:
        table = Table(box=None, pad_edge=False)
        for header in rows[0]:
            table.add_column(header, overflow="fold")
        for row in rows:
            table.add_row(*map(str, row.values()))
        console.print(table)
    for name, reason in failures:
        typer.echo(f"not in it: {name}: {reason}", err=True)
