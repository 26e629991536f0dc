"""``halfv report``: everything about a profile on one page that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfv_cli.data_options import again
from halfv_cli.options import MODEL_HELP, Device, Dtype, ProfilePath

if TYPE_CHECKING:
    from halfv_accel import Profile
    from halfv_probe.views.report import TokenMap


def report(
    profile: ProfilePath = Path("profile.json"),
    out: Annotated[Path, typer.Option(help="The page: .html.")] = Path("report.html"),
    model: Annotated[str | None, typer.Option(help=f"Instead of the profile's own model: {MODEL_HELP}")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pictures on which kept tokens are drawn.")] = 3,
    no_model: Annotated[bool, typer.Option("--no-model", help="Open no model: leave those pictures out.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Write a page: what was chosen and why, every curve with its numbers, the tokens kept on a few pictures."""
    from halfv_accel import Profile
    from halfv_accel.models import find_device, find_dtype
    from halfv_probe.views.report import check_report_path, write_report

    loaded = Profile.load(profile)
    check_report_path(out)
    _ = loaded.halfv  # of another method's profile there is no page: it says so
    pictures: list[TokenMap] = []
    remark = "Not drawn: the page was made with --no-model."
    if not no_model:
        find_device(device)  # a mistyped option is no reason for a page with less on it
        find_dtype(dtype)
        pictures, remark = _pictures(loaded, model, samples, device, dtype)
    write_report(loaded, out, pictures, remark)
    typer.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")


def _pictures(profile: Profile, model: str | None, samples: int, device: str, dtype: str) -> tuple[list[TokenMap], str]:
    """What becomes of some samples' tokens, and with what that was found; or nothing, and why."""
    from halfv_cli.models import open_model
    from halfv_data import load_samples
    from halfv_probe.views.report import map_tokens

    name, calibration = model or profile.model.id, profile.calibration
    how = again(None if calibration.settings is None else calibration.settings.reading)
    try:
        drawn = load_samples(calibration.data, samples, calibration.seed, how)
        vlm, processor = open_model(name, device, dtype)
        maps = map_tokens(vlm, processor, drawn, profile)
    except Exception as error:  # whatever it is, the rest of the page does not need it
        reason = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"halfv: kept tokens are not drawn: {reason}", err=True)
        return [], f"Not drawn, because {name} or its data could not be used: {reason}."
    precision = str(vlm.dtype).removeprefix("torch.")
    return maps, f"Drawn with {name} on {vlm.device}, {precision}; pictures from {profile.calibration.data}."
