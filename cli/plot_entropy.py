"""``halfv plot-entropy``: the curves of a profile as a picture, and as numbers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halfv_cli.options import ProfilePath


def plot_entropy(
    profile: ProfilePath = Path("profile.json"),
    out: Annotated[Path, typer.Option(help="The picture: .png, .pdf or .svg.")] = Path("entropy.png"),
) -> None:
    """Draw entropy and layer redundancy over depth, with the stages and the chosen layers; writes the numbers, too."""
    from halfv_accel import Profile
    from halfv_accel.files import check_writable
    from halfv_probe.views.plots import plot_entropy as draw

    loaded = Profile.load(profile)
    check_writable(out)
    numbers = draw(loaded, out)
    typer.echo(f"wrote {out} and {numbers}")
