"""``halfv plot-entropy``: the curves of one profile or of several as a picture, and as numbers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from halfv_accel import Profile


def plot_entropy(
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            help="The profile that calibrate wrote; given several times, the models are compared over depth.",
            show_default="profile.json",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture: .png, .pdf or .svg.")] = Path("entropy.png"),
    scale: Annotated[
        Literal["nats", "zscore"] | None,
        typer.Option(
            help="Entropies as they are, or each curve in its standard deviations from its mean.",
            show_default="nats; zscore for several profiles",
        ),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option("--k", help="Instead: the curves for these numbers of eigenvalues, such as 2,4,8,16."),
    ] = None,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="Instead: the eigenvalues of visual tokens over layers.")
    ] = False,
) -> None:
    """Draw entropy and layer redundancy over depth, with the stages and the chosen layers; writes the numbers, too."""
    files = profile or [Path("profile.json")]
    ks = None if k is None else _ks(k)
    _check_options(len(files), ks, spectrum, scale)
    from halfv_accel import Profile

    numbers = _draw([Profile.load(file) for file in files], out, scale, ks, spectrum)
    typer.echo(f"wrote {out} and {numbers}")


def _draw(
    profiles: list[Profile], out: Path, scale: Literal["nats", "zscore"] | None, ks: list[int] | None, spectrum: bool
) -> Path:
    """The picture that was asked for; returns the file of its numbers."""
    from halfv_probe.views.many_k import plot_many_k
    from halfv_probe.views.plots import plot_entropy
    from halfv_probe.views.several_models import plot_models
    from halfv_probe.views.spectra import plot_spectrum
    from halfv_probe.views.tables import curves_of

    for each in profiles:
        curves_of(each)  # another method's calibration measured none: it says so
    if len(profiles) > 1:
        return plot_models(profiles, out, scale or "zscore")
    [one] = profiles
    if spectrum:
        return plot_spectrum(one, out)
    if ks is not None:
        return plot_many_k(one, ks, out, scale or "nats")
    return plot_entropy(one, out, scale or "nats")


def _ks(text: str) -> list[int]:
    """Numbers of eigenvalues, separated by commas."""
    from halfv_accel import HalfVError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and len(word) < 6 and int(word) >= 1 for word in words):
        given = f"--k is {text[:40]!r}"
        raise HalfVError(f"{given}: give whole numbers of at least 1, separated by commas, such as 2,4,8,16")
    return [int(word) for word in words]


def _check_options(profiles: int, ks: list[int] | None, spectrum: bool, scale: str | None) -> None:
    """Options that make no sense together."""
    from halfv_accel import HalfVError

    if ks is not None and spectrum:
        raise HalfVError("--k and --spectrum are two pictures: give one of them")
    if profiles > 1 and (spectrum or ks is not None):
        option = "--spectrum" if spectrum else "--k"
        raise HalfVError(f"{option} draws one model, and {profiles} profiles were given: give one --profile")
    if spectrum and scale is not None:
        raise HalfVError("--scale is for entropies, and --spectrum draws none: leave --scale out")
