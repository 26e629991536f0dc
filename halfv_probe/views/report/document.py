"""One page about one profile: what was chosen, why, and how sure that is.

What a profile does not hold is left out, and named in one sentence; so profiles of earlier versions give a page, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from halfv_accel import HalfVError, Profile
from halfv_accel.files import check_writable, write_atomically
from halfv_probe.views import tables
from halfv_probe.views.landmarks import percent
from halfv_probe.views.report import glossary, page, sections
from halfv_probe.views.report.choices import choices
from halfv_probe.views.report.overlays import TokenMap
from halfv_probe.views.report.provenance import provenance
from halfv_probe.views.report.second_stage import second_stage
from halfv_probe.views.report.stability import stability
from halfv_probe.views.report.witnesses import witnesses


def write_report(profile: Profile, path: Path | str, pictures: Sequence[TokenMap] = (), remark: str = "") -> None:
    """Write the page.

    Parameters
    ----------
    profile : Profile
        Of any 1.x version.
    path : path
        Ends in .html or .htm. Written in full or not at all.
    pictures : sequence of TokenMap
        From `map_tokens`: kept patches and the coverage picture are drawn from them.
    remark : str
        One sentence above the pictures: what they were drawn with, or why there are none.

    Raises
    ------
    HalfVError
        If the ending is another one, or the file cannot be written.
    """
    check_report_path(path)
    write_atomically(path, report_page(profile, pictures, remark).encode())


def check_report_path(path: Path | str) -> None:
    """Fail before long work if the page could not be written there.

    Raises
    ------
    HalfVError
        As `write_report`.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".html", ".htm") and not Path(path).is_dir():
        raise HalfVError(f"{path} ends in {ending or 'nothing'}: name a page that ends in .html")
    check_writable(path)


def report_page(profile: Profile, pictures: Sequence[TokenMap] = (), remark: str = "") -> str:
    """The page as text; see `write_report`."""
    found = (
        ("choice", "What was chosen, and why", choices(profile)),
        ("entropy", "Entropy over depth", sections.entropy(profile)),
        ("stages", "Where the stages begin: all witnesses", witnesses(profile)),
        ("spectrum", "Spectrum over depth", sections.spectrum(profile)),
        ("redundancy", "What the layers' work on visual tokens is worth", sections.redundancy(profile)),
        ("second-stage", "The second stage alone", second_stage(profile)),
        ("utility", "Marginal utility of pruning", sections.utility(profile)),
        ("trials", "Plans that were run", sections.trials(profile)),
        ("votes", "How sure the choice is", sections.votes(profile)),
        ("holds", "Does it hold?", stability(profile)),
        ("pictures", "Which tokens are kept", sections.kept_tokens(profile, pictures, remark)),
        ("provenance", "Where the numbers come from", provenance(profile)),
        ("words", "Words and units", page.terms(glossary.TERMS)),
    )
    present = [(anchor, title, content) for anchor, title, content in found if content]
    links = page.links([(anchor, title) for anchor, title, _ in present])
    body = "\n".join(page.section(*part) for part in present)
    head = f"<header>\n{headline(profile)}\n{links}\n</header>"
    return page.page(f"HalfV report: {profile.model.id}", head, f"<main>\n{body}\n</main>")


def headline(profile: Profile) -> str:
    """Ten seconds: which model, what is done to it, what that saves and what it costs."""
    warning = "Caution: this model shows no three stages on these samples; the plan is a cautious fallback."
    return "\n".join(
        (
            page.paragraph("HalfV report: reading pictures with fewer visual tokens", "kicker"),
            page.title(profile.model.id),
            page.paragraph(plan_in_words(profile), "lead"),
            page.cards(_results(profile)),
            page.paragraph(_goal(profile)),
            "" if profile.evidence.stable else page.paragraph(warning, "warning"),
        )
    )


def plan_in_words(profile: Profile) -> str:
    """The plan for someone who knows none of the words."""
    (ivr, ssr), depth = profile.halfv, profile.model.num_layers
    start = ivr.layer if ivr.retention < 1 or ssr.layer is None else ssr.layer
    first = f"The first of {depth} layers reads" if start == 1 else f"The first {start} of {depth} layers read"
    text = f"{first} all of a picture's tokens"
    if start == ivr.layer and ivr.retention < 1:
        text += f"; from layer {ivr.layer} on, {percent(ivr.retention)} of them are kept"
    if ssr.mode == "freeze":
        when = "these" if ssr.layer == ivr.layer and ivr.retention < 1 else f"from layer {ssr.layer} on, they"
        return f"{text}; {when} are still looked at, but no longer updated."
    if ssr.mode == "sparse" and ssr.retention is not None:
        return f"{text}; from layer {ssr.layer} on, only {percent(ssr.retention)}."
    return f"{text}."


def _results(profile: Profile) -> list[tuple[str, str]]:
    """Large numbers with what they mean; what was not measured is not there."""
    evidence, samples = profile.evidence, profile.calibration.samples
    replies = "first answer tokens" if profile.schema_version == "1.0" else "replies"  # 1.0 looked at one token
    lost = "of samples lose their right answer" if tables.by_answers(profile) else "of samples get another reply"
    if evidence.drop_bound is not None:
        lost += f"; with {percent(evidence.goal.confidence)} confidence at most {percent(evidence.drop_bound)}"
    numbers = (
        (evidence.flops, "of the untouched model's prefill FLOPs"),
        (evidence.agreement, f"of {replies} unchanged, on {samples} samples"),
        (evidence.drop, lost),
        (evidence.untouched_accuracy, "of samples are answered right by the untouched model"),
    )
    return [(percent(value), meaning) for value, meaning in numbers if value is not None]


def _goal(profile: Profile) -> str:
    goal = profile.evidence.goal
    if goal.kind == "paper" or goal.value is None:
        return ""
    if goal.kind == "max_drop":
        return f"Asked for: a drop of at most {percent(goal.value)}, with {percent(goal.confidence)} confidence."
    return f"Asked for: prefill FLOPs of at most {percent(goal.value)} of the untouched model's."
