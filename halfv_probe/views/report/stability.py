"""Does it hold? The stages and the choice again under other conditions, and what flips."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from halfv_accel import Profile
from halfv_accel.evidence import Held
from halfv_probe.views import tables
from halfv_probe.views.report import page

Flip = Literal["stable", "ivr", "ssr", "mode", "plan"]
ABOUT = {
    "k": "Another number of eigenvalues (k)",
    "thresholds": "Other thresholds of the detection",
    "samples": "Fewer samples",
    "halves": "Each half of the samples",
    "task": "One task alone",
}
FLIPS: dict[Flip, str] = {
    "stable": "three stages or not",
    "ivr": "L_IVR",
    "ssr": "L_SSR",
    "mode": "SSR mode",
    "plan": "plan",
}
HEADER = ("condition", "holds?", "three stages", "L_IVR, by curves", "L_SSR, by curves", "SSR mode", "plan")
EXPLAINED = (
    "Everything that follows from the measurements was decided again, with one thing changed. A layer flips where it "
    "moves by more than a twelfth of the depth; what flips is named, set in bold type and marked by ≠. A choice that "
    "holds under all of these does not hang on how it was measured."
)


def stability(profile: Profile) -> str:
    """The section: how many conditions flip something, and a table of them."""
    held = profile.evidence.holds
    if not held:
        return ""
    groups = [
        (title, [_row(one) for one in held if one.about == about])
        for about, title in ABOUT.items()
        if any(one.about == about for one in held)
    ]
    parts = (
        page.paragraph(in_words(held), "lead"),
        page.paragraph(EXPLAINED),
        page.grouped_grid("Does it hold?", HEADER, [*_as_chosen(profile), *groups]),
        page.numbers("holds", tables.holds(profile)),
    )
    return "\n".join(parts)


def in_words(held: list[Held]) -> str:
    """How many conditions flip something, and what."""
    flipping = [one for one in held if one.flips]
    conditions = f"{len(held)} other condition{'s' if len(held) > 1 else ''}"
    if not flipping:
        return f"It holds: nothing flips under {conditions}."
    counts = Counter(flip for one in flipping for flip in one.flips)
    what = ", ".join(f"{name} in {counts[flip]}" for flip, name in FLIPS.items() if counts[flip])
    verb = "flips" if len(flipping) == 1 else "flip"
    return f"Of {conditions} {len(flipping)} {verb} something: {what}."


def _as_chosen(profile: Profile) -> list[tuple[str, list[tuple[str, ...]]]]:
    """What the others are compared with; profiles that do not say what the curves alone gave have no such row."""
    curves = profile.evidence.curve_only
    if not {"ivr", "ssr"} <= set(curves):
        return []
    stages = "yes" if profile.evidence.stable else "no"
    own = ("the choice that was made", "", stages, str(curves["ivr"]), str(curves["ssr"]), profile.halfv[1].mode, "")
    return [("As calibrated", [own])]


def _row(one: Held) -> tuple[str, ...]:
    """A condition; what flips is said and marked."""
    values: dict[Flip, str] = {
        "stable": "yes" if one.stable else "no",
        "ivr": str(one.ivr),
        "ssr": str(one.ssr),
        "mode": one.mode,
        "plan": one.plan,
    }
    flips = ", ".join(name for flip, name in FLIPS.items() if flip in one.flips)
    cells = (page.Strong(f"≠ {value}") if flip in one.flips else value for flip, value in values.items())
    return (one.condition, page.Strong(f"flips: {flips}") if flips else "holds", *cells)
