"""Where a page's numbers come from, and which statements are measured and which are the paper's."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from halfv_accel import Profile
from halfv_accel.settings import Settings
from halfv_probe.views.report import glossary, page

OPTIONAL = {  # field of the evidence: what a reader may miss
    "entropy_std": "the spread of entropy over samples",
    "entropy_by_k": "entropy for other k",
    "null": "random weights",
    "spectrum": "the spectrum",
    "layer_kl": "layer KL",
    "suffix_kl": "suffix KL",
    "attention_to_visual": "attention to visual tokens",
    "maturity": "maturity",
    "witnesses": "what each curve says about the stages",
    "verdicts": "the choices by each kind of evidence",
    "isolated": "the second stage alone",
    "utility": "marginal utility",
    "utility_by_stage": "marginal utility by stage",
    "trials": "trials of other plans",
    "votes": "bootstrap votes",
    "holds": "whether the choice holds under other conditions",
    "flops": "FLOPs",
    "agreement": "agreement",
    "drop": "drop",
}


def provenance(profile: Profile) -> str:
    """Model, data, versions; what was not measured; what is measured here and what is the paper's."""
    return "\n".join(
        (
            page.terms(_facts(profile)),
            page.paragraph(not_measured(profile)),
            page.heading("What is measured here, and what is the paper's"),
            page.paragraph(f"The paper is: {glossary.PAPER}."),
            page.bullets([*glossary.measured_here(profile), *glossary.from_the_paper(profile)]),
        )
    )


def not_measured(profile: Profile) -> str:
    """One sentence about what this profile does not hold, or nothing."""
    missing = [name for field, name in OPTIONAL.items() if getattr(profile.evidence, field) in (None, [], {})]
    if not missing:
        return ""
    return f"Not measured in this profile, and so not on this page: {', '.join(missing)}."


def _facts(profile: Profile) -> list[tuple[str, str]]:
    """Everything that the profile says about its origin; fields of later versions included."""
    model, calibration = profile.model, profile.calibration
    facts = [
        ("model", f"{model.id} ({model.architecture}, {model.num_layers} layers of width {model.hidden_size})"),
        ("model fingerprint", f"{model.fingerprint}, over names and shapes of its parameters"),
        ("data", calibration.data),
        ("data fingerprint", f"{calibration.data_fingerprint}, over pictures, questions and answers"),
        ("samples, seed", f"{calibration.samples} samples, drawn with seed {calibration.seed}"),
        ("follows", "the paper" if calibration.fidelity == "paper" else "the authors' public code where it differs"),
    ]
    if calibration.settings is not None:
        facts.append(("settings", ", ".join(f"{name} {value}" for name, value in _settings(calibration.settings))))
    told = {"data", "data_fingerprint", "samples", "seed", "fidelity", "versions", "settings"}
    facts += [(name, str(value)) for name, value in calibration.model_dump().items() if name not in told]
    versions = ", ".join(f"{name} {version}" for name, version in calibration.versions.items())
    facts += [("calibrated with", versions or "versions not recorded"), ("profile schema", profile.schema_version)]
    return [*facts, ("page written by", f"HalfV {_version()}")]


def _settings(settings: Settings) -> Iterator[tuple[str, object]]:
    """What else was asked for: the goal is at the top of the page, the data are told beside it."""
    told = {"model_id", "data", "data_fingerprint", "seed", "fidelity", "goal"}
    yield from (
        (name.replace("_", " "), value) for name, value in settings.model_dump(exclude=told, exclude_none=True).items()
    )


def _version() -> str:
    try:
        return metadata.version("halfv")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "(not installed as a package)"
