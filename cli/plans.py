"""The plan that a command runs: a profile's, or one in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from halfv_accel import Plan, Profile

PLAN_HELP = (
    "Instead of a profile: stages as what:layer:retention[:anchor_ratio], such as ivr:2:0.25,sparse:21:0.05 or "
    "ivr:3:0.5:0.2,freeze:15; or paper, the model's plan of Table 9."
)
ProfileOrPlan = Annotated[Path | None, typer.Option("--profile", help="The profile that calibrate wrote.")]
PlanText = Annotated[str | None, typer.Option("--plan", help=PLAN_HELP)]


def read_plan(profile: Path | None, text: str | None, model: str | None) -> Profile | Plan | None:
    """What was asked for, as far as it can be known before a model is opened: nothing yet of the paper's plan.

    Raises
    ------
    HalfVError
        If both or none were given, or what was given cannot serve.
    """
    from halfv_accel import HalfVError, Profile
    from halfv_accel.names import PAPER, expect_paper_plan
    from halfv_accel.plan_text import parse_plan

    if (profile is None) == (text is None):
        given = "neither --profile nor --plan was" if profile is None else "both --profile and --plan were"
        raise HalfVError(f"{given} given: give one of them, for example --plan ivr:2:0.5,freeze:6, or --plan paper")
    if profile is not None:
        return Profile.load(profile)
    if text != PAPER:
        return parse_plan(text or "")
    expect_paper_plan(model or "")
    return None


def plan_on(vlm: Any, asked: Profile | Plan | None) -> Plan:
    """The plan itself, on the opened model."""
    from halfv_accel import Profile
    from halfv_accel.names import PAPER, named_plan

    if isinstance(asked, Profile):
        return asked.plan()
    return named_plan(PAPER, vlm) if asked is None else asked
