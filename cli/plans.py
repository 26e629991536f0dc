"""The plan that a command runs: a profile's, or one in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from halfv_accel import Plan, Profile

PLAN_HELP = (
    "Instead of a profile: stages as what:layer:budget, such as ivr:2:0.25,sparse:21:0.05, fastv:2:0.25 or "
    "visionzip::64 (a number of tokens, before the language model), with downsample::0.25 in front, or alone, to "
    "shrink the pictures; a method alone, such as pdrop, for its defaults (see halfv methods); paper, the model's plan "
    "of Table 9; or a plan.json."
)
ANY_DEPTH = 10**6  # layers; a plan's text is read once before the model is known
ProfileOrPlan = Annotated[Path | None, typer.Option("--profile", help="The profile that calibrate wrote.")]
PlanText = Annotated[str | None, typer.Option("--plan", help=PLAN_HELP)]


def read_plan(profile: Path | None, text: str | None, model: str | None) -> Profile | Plan | str:
    """What was asked for, as far as it can be known before a model is opened: words may still depend on its size.

    Raises
    ------
    HalfVError
        If both or none were given, or what was given cannot serve.
    """
    from halfv_accel import HalfVError, Profile
    from halfv_accel.methods import Facts
    from halfv_accel.names import PAPER, expect_paper_plan
    from halfv_accel.plan_document import PlanDocument
    from halfv_accel.plan_text import parse_plan

    if (profile is None) == (text is None):
        given = "neither --profile nor --plan was" if profile is None else "both --profile and --plan were"
        raise HalfVError(f"{given} given: give one of them, for example --plan ivr:2:0.5,freeze:6, or --plan paper")
    if profile is not None:
        return Profile.load(profile)
    words = text or ""
    if words.endswith(".json"):
        return PlanDocument.load(words).plan()
    if words == PAPER:
        expect_paper_plan(model or "")
    else:
        parse_plan(words, Facts(ANY_DEPTH))  # nonsense is refused before a model is opened
    return words


def plan_on(vlm: Any, asked: Profile | Plan | str) -> Plan:
    """The plan itself, on the opened model."""
    from halfv_accel import Profile
    from halfv_accel.names import named_plan

    if isinstance(asked, Profile):
        return asked.plan()
    return named_plan(asked, vlm) if isinstance(asked, str) else asked
