"""What was chosen, and what each kind of evidence would have chosen: curves, KL, trials."""

from __future__ import annotations

from typing import Any

from halfv_accel import Profile
from halfv_accel.evidence import Choice, Verdict
from halfv_probe.views import tables
from halfv_probe.views.landmarks import percent
from halfv_probe.views.report import page

OTHER_REASONS = {"ssr": "L_SSR", "goal": "the plan as a whole", "curve": "the entropy curve"}
K_SOURCES = {"elbow": "elbow of the visual spectrum", "fixed": "fixed", "energy": "share of the energy"}
NAMES: dict[Choice, str] = {"ivr": "L_IVR", "ssr": "L_SSR", "mode": "SSR mode"}
WITNESSES = {"curve": "the curve", "kl": "KL", "trials": "trials"}
HEADER = ("choice", "value", "by the curve", "by KL", "by trials", "bootstrap votes", "why")


def choices(profile: Profile) -> str:
    """A row for each choice: value, what curve, KL and trials say, votes, reason; above it where they disagree."""
    evidence, (ivr, ssr) = profile.evidence, profile.halfv
    why = dict(evidence.choices)
    source = "fixed" if profile.calibration.fidelity == "reference" else K_SOURCES[evidence.k_source]
    rows = [
        _row("k (eigenvalues)", str(evidence.k), why.pop("k", source)),
        ("L_IVR", f"layer {ivr.layer}", *_support(profile, "ivr", ivr.layer), why.pop("ivr", "")),
        _row("IVR keeps", percent(ivr.retention), why.pop("retention", "of all visual tokens")),
        _row("anchors among them", percent(ivr.anchor_ratio), why.pop("anchor_ratio", "")),
        ("SSR mode", ssr.mode, *_support(profile, "mode", ssr.mode), why.pop("mode", "")),
    ]
    if ssr.layer is not None or "ssr" in evidence.verdicts:
        value = "none" if ssr.layer is None else f"layer {ssr.layer}"
        rows.append(("L_SSR", value, *_support(profile, "ssr", ssr.layer), why.pop("ssr", "")))
    if ssr.mode == "sparse" and ssr.retention is not None:
        rows.append(_row("SSR keeps", percent(ssr.retention), "of all visual tokens"))
    rows += [_row(OTHER_REASONS.get(name, name), "", reason) for name, reason in why.items()]
    used = [place for place in range(len(HEADER)) if any(row[place] for row in rows)]
    head, *body = ([row[place] for place in used] for row in (HEADER, *rows))
    table = page.grid("What was chosen, and why", head, body)
    if not evidence.verdicts:
        return table
    return "\n".join(
        (*map(page.paragraph, in_words(profile)), table, page.numbers("verdicts", tables.verdicts(profile)))
    )


def in_words(profile: Profile) -> list[str]:
    """Do curve, KL and trials agree? A sentence for each choice on which they do not."""
    verdicts = profile.evidence.verdicts
    found = []
    for choice, verdict in verdicts.items():
        if not verdict.agree:
            said = ", ".join(f"{shown(choice, value)} by {name}" for name, value in _voices(verdict))
            found.append(f"The evidence disagrees about {NAMES[choice]}: {said}.")
    agreed = [NAMES[choice] for choice, verdict in verdicts.items() if verdict.agree]
    if agreed:
        found.append(f"The evidence agrees, give or take one layer, about {' and '.join(agreed)}.")
    if len(agreed) < len(verdicts):
        found.append("In the table, ≠ marks what is not the value that was chosen.")
    return found


def shown(choice: Choice, value: str) -> str:
    """A verdict's value as it reads in a sentence or a cell."""
    if value.isdecimal() and choice != "mode":
        return f"layer {value}"
    return "none" if value == "None" else value


def _voices(verdict: Verdict) -> list[tuple[str, str]]:
    """Kind of evidence and value, of those that have a say."""
    found = ((name, getattr(verdict, field)) for field, name in WITNESSES.items())
    return [(name, value) for name, value in found if value is not None]


def _row(choice: str, value: str, why: str) -> tuple[str, ...]:
    """A choice about which only the reason is told."""
    return (choice, value, "", "", "", "", why)


def _support(profile: Profile, choice: Choice, value: Any) -> tuple[str, str, str, str]:
    """What curve, KL and trials say, and the share of bootstrap votes."""
    evidence = profile.evidence
    share = evidence.votes.get(choice, {}).get(str(value))
    votes = "" if share is None else percent(share)
    verdict = evidence.verdicts.get(choice)
    if verdict is None:  # profiles before 1.3 know what the curve alone would have given
        alone = None if choice == "mode" else evidence.curve_only.get(choice)
        return "" if alone is None else f"layer {alone}", "", "", votes
    curve, kl, trials = (
        "" if said is None else _cell(choice, said, str(value)) for said in (verdict.curve, verdict.kl, verdict.trials)
    )
    return curve, kl, trials, votes


def _cell(choice: Choice, said: str, chosen: str) -> str:
    """What is said, marked where it is not what was chosen, give or take one layer."""
    near = said.isdecimal() and chosen.isdecimal() and abs(int(said) - int(chosen)) <= 1
    return shown(choice, said) if near or said == chosen else page.Strong(f"≠ {shown(choice, said)}")
