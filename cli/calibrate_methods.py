"""What ``halfv calibrate --method`` takes, and what it tells at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from halfv_accel import Profile
    from halfv_probe.methods.protocol import Calibrated

CLOSE_AGREEMENT = 0.9  # below it, the user hears how many replies change
MethodName = Literal[
    "halfv", "vtw", "shortv", "fitprune", "infoprune", "adavtp", "erank_divprune", "erank_vispruner", "erank_bat"
]
BUDGET = ("retention",)
OPTIONS: dict[str, tuple[str, ...]] = {  # what each method knows beside where samples come from and how they are run
    "halfv": ("max_drop", "target_flops", "confidence", "k", "fidelity", "latency", "null"),
    "vtw": ("max_kl",),
    "shortv": ("layers",),
    "fitprune": ("target_flops",),
    "infoprune": (),
    "adavtp": BUDGET,
    "erank_divprune": BUDGET,
    "erank_vispruner": BUDGET,
    "erank_bat": BUDGET,
}


def check_options(context: typer.Context, method: MethodName) -> None:
    """Refuse options that a method has no use for.

    Raises
    ------
    HalfVError
    """
    from halfv_accel import HalfVError

    known = OPTIONS[method]
    for name in dict.fromkeys(name for names in OPTIONS.values() for name in names):
        source = context.get_parameter_source(name)
        if name not in known and source is not None and source.name == "COMMANDLINE":
            theirs = ", ".join(map(_flag, known)) or "none of its own"
            raise HalfVError(f"{_flag(name)} is no option of --method {method}, which knows {theirs}: leave it out")


def asked_of(
    method: MethodName,
    max_kl: float | None,
    layers: int | None,
    retention: float | None,
    target_flops: float | None,
) -> Calibrated | None:
    """The calibration that was asked for; None is HalfV's own.

    Raises
    ------
    HalfVError
        If an option has no sense, or one that is needed is not there.
    """
    from halfv_accel import HalfVError
    from halfv_probe.choice.layers import ETA
    from halfv_probe.methods.erank import EffectiveRank
    from halfv_probe.methods.fitprune import FitPruneBudget
    from halfv_probe.methods.infoprune import MatureLayer
    from halfv_probe.methods.shortv import ShortV
    from halfv_probe.methods.vtw import VTW

    if method == "halfv":
        return None
    if method == "vtw":
        if max_kl is not None and not 0 < max_kl < float("inf"):
            raise HalfVError(f"--max-kl is {max_kl:g}: give nats above 0, such as {ETA:g}")
        return VTW(ETA if max_kl is None else max_kl)
    if method == "shortv":
        return ShortV(layers)
    if method == "infoprune":
        return MatureLayer()
    if method == "fitprune":
        if target_flops is None:
            raise HalfVError("--method fitprune keeps to a budget: add --target-flops, such as --target-flops 0.5")
        return FitPruneBudget(target_flops)
    if retention is not None and not 0 < retention <= 1:
        raise HalfVError(f"--retention is {retention:g}: give a share of the visual tokens above 0, such as 0.25")
    return EffectiveRank(method, retention)


def print_method(profile: Profile, out: Path, seconds: float) -> None:
    """The table at the end: the plan, why it is so, and what it does."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from halfv_accel.plan_text import describe_plan

    evidence = profile.evidence
    [(name, why)] = evidence.choices.items()
    title = f"{profile.model.id}: {profile.model.num_layers} layers, {profile.calibration.samples} samples"
    table = Table("", title=Text(title))
    table.add_column(name, overflow="fold", ratio=2)
    table.add_column("why", ratio=3)
    bound = f"at most {evidence.drop_bound:.1%} with {evidence.goal.confidence:.0%} confidence"
    table.add_row("plan", describe_plan(profile.plan()), why)
    table.add_row("prefill FLOPs", f"{evidence.flops:.0%}", "of untouched, decoder and selection")
    table.add_row("answers lost", f"{evidence.drop:.1%}", bound)
    table.add_row("agreement", f"{evidence.agreement:.0%}", "replies (first 8 tokens) that stay the untouched model's")
    Console().print(table)
    if evidence.agreement is not None and evidence.agreement < CLOSE_AGREEMENT:
        typer.echo(f"note: {1 - evidence.agreement:.0%} of the replies change with this plan", err=True)
    typer.echo(f"wrote {out} in {seconds:.0f} s; next: halfv run --profile {out}, halfv bench --profile {out}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
