"""profile.json: what calibration found out about one model, and all that acceleration needs to know.

The document is versioned. A reader accepts every 1.x and 2.x: fields it does not know are ignored, and a later major
version is refused. Since 2.0 it holds a plan in general form, of whatever method; before, the two stages of HalfV's own
method were all that there could be, and they are still there where that method was chosen. Entropies and divergences
are in nats, ratios are kept / all, layers are counted from 0.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from halfv_accel.errors import HalfVError
from halfv_accel.evidence import Evidence, Layer, Ratio
from halfv_accel.files import write_atomically
from halfv_accel.identity import ModelInfo, fingerprint, model_info
from halfv_accel.plan import Fidelity, Plan, SSRMode, halfv_plan
from halfv_accel.plan_document import PlanDocument
from halfv_accel.plan_text import describe_plan
from halfv_accel.settings import Document, Settings, Share
from halfv_accel.strategies import ScoredBy

__all__ = [
    "IVR",
    "SSR",
    "Calibration",
    "Evidence",
    "ModelInfo",
    "Profile",
    "fingerprint",
    "json_schema",
    "model_info",
]

# 1.1: trials, utility, votes and more curves in the evidence; 1.2: min_visual_tokens; 1.3: scored_by, the settings, and
# witnesses, verdicts, isolated trials, a null model and what holds in the evidence.
# 2.0: a plan of any method; ivr and ssr only where it is HalfV's.
SCHEMA_VERSION = "2.0"
READABLE = ("1", "2")  # major versions


class IVR(Document):
    """Intrinsic visual redundancy: AnchorCover at the onset of Stage II (§3.3, step 1)."""

    layer: Layer = Field(description="L_IVR: the stage acts on the input of this decoder layer.")
    retention: Ratio = Field(description="R_IVR: visual tokens kept / all.")
    anchor_ratio: Share = Field(description="R_S: share of the kept tokens chosen for relevance.")
    scored_by: ScoredBy = Field(default="previous", description="Whose attention: layer L_IVR - 1's, or L_IVR's own.")


class SSR(Document):
    """Secondary saturation redundancy: what happens from the onset of Stage III (§3.3, step 2)."""

    mode: SSRMode
    layer: Layer | None = Field(default=None, description="L_SSR; absent only with mode 'none'.")
    retention: Ratio | None = Field(default=None, description="Visual tokens kept / all, for mode 'sparse'.")
    scored_by: ScoredBy = Field(default="previous", description="As in IVR; of use to mode 'sparse' only.")


class Calibration(Document):
    """Where the numbers came from."""

    data: str
    data_fingerprint: str
    samples: int = Field(ge=1)
    seed: int
    fidelity: Fidelity = "paper"
    versions: dict[str, str] = Field(default_factory=dict)
    dtype: str | None = Field(default=None, description="Of the weights it ran with; absent before 2.0.")
    device: str | None = Field(default=None, description="What it ran on: cpu, cuda, mps; absent before 2.0.")
    settings: Settings | None = Field(default=None, description="All that was asked for; absent before 1.3.")


class Profile(Document):
    """One calibrated model."""

    schema_version: str = SCHEMA_VERSION
    model: ModelInfo
    planned: PlanDocument | None = Field(
        default=None,
        alias="plan",
        description="Stages and skipped layers; absent before 2.0, where ivr and ssr say it.",
    )
    ivr: IVR | None = Field(default=None, description="The first stage, where HalfV's own method was chosen.")
    ssr: SSR | None = Field(default=None, description="The second stage, where HalfV's own method was chosen.")
    calibration: Calibration
    evidence: Evidence
    min_visual_tokens: int = Field(
        default=0,
        ge=0,
        description="Prompts with fewer visual tokens are left alone: what `halfv bench --break-even` found.",
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Profile:
        depth, halfv = self.model.num_layers, None
        if (self.ivr is None) != (self.ssr is None) or (self.ivr is None and self.planned is None):
            raise ValueError("there is no plan: give plan, or both ivr and ssr")
        if self.ivr is not None and self.ssr is not None:
            for name, layer in (("ivr.layer", self.ivr.layer), ("ssr.layer", self.ssr.layer)):
                if layer is not None and layer >= depth:
                    raise ValueError(f"{name} is {layer}, but the model has {depth} layers")
            halfv = self._halfv_plan(self.ivr, self.ssr)  # the order of stages is the plan's to judge
        plan = self.plan()
        plan.check_depth(depth)
        if halfv is not None and halfv != plan:
            raise ValueError("plan, and ivr and ssr, do not say the same")
        if halfv is not None:  # in memory the stages say it once, so that no change leaves the two at odds
            object.__setattr__(self, "planned", None)
        self.evidence.check_depth(depth)
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read and check a profile.

        Raises
        ------
        HalfVError
            In one sentence, whatever is wrong with the file or its content.
        """
        raw = _read_object(Path(path))
        _check_version(path, raw.get("schema_version"))
        try:
            return cls.model_validate_json(json.dumps(raw), strict=True)
        except ValidationError as error:
            raise HalfVError(f"{path} is not a valid profile: {_first_problem(error)}: {_ANEW}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile at once or not at all: a reader never sees half a file."""
        document = replace(self.plan(), min_visual_tokens=0)
        whole = self.model_copy(update={"planned": PlanDocument.of(document)})
        unsaid = {"evidence": self.evidence.unsaid()}
        write_atomically(Path(path), (whole.model_dump_json(indent=2, by_alias=True, exclude=unsaid) + "\n").encode())

    def plan(self) -> Plan:
        """The stages that this profile asks for."""
        if self.planned is not None:
            return replace(self.planned.plan(), min_visual_tokens=self.min_visual_tokens)
        return self._halfv_plan(*self.halfv)

    @property
    def halfv(self) -> tuple[IVR, SSR]:
        """The two stages of HalfV's own method.

        Raises
        ------
        HalfVError
            If the profile holds another method's plan.
        """
        if self.ivr is None or self.ssr is None:
            raise HalfVError(
                f"the profile's plan is {describe_plan(self.plan())}, and not HalfV's own: "
                "only halfv run and halfv bench can use it"
            )
        return self.ivr, self.ssr

    def _halfv_plan(self, ivr: IVR, ssr: SSR) -> Plan:
        return halfv_plan(
            ivr_layer=ivr.layer,
            ivr_retention=ivr.retention,
            anchor_ratio=ivr.anchor_ratio,
            ssr_mode=ssr.mode,
            ssr_layer=ssr.layer,
            ssr_retention=ssr.retention,
            ivr_scored_by=ivr.scored_by,
            ssr_scored_by=ssr.scored_by,
            fidelity=self.calibration.fidelity,
            min_visual_tokens=self.min_visual_tokens,
        )

    def check(self, model: Any) -> None:
        """Refuse a model other than the one the profile was made for."""
        text, mine = model.config.get_text_config(), self.model
        there = (type(model).__name__, text.num_hidden_layers, text.hidden_size)
        name = getattr(model.config, "_name_or_path", "") or "ID"
        advice = f"calibrate this model with: halfv calibrate --model {name}"
        if there != (mine.architecture, mine.num_layers, mine.hidden_size):
            raise HalfVError(
                f"the profile was made for {mine.architecture} with {mine.num_layers} layers of width "
                f"{mine.hidden_size}, but this model is {there[0]} with {there[1]} layers of width {there[2]}: {advice}"
            )
        if fingerprint(model) != mine.fingerprint:
            raise HalfVError(
                f"the profile was made for {mine.id} (fingerprint {mine.fingerprint}), but this model's parameters "
                f"have other names or shapes (fingerprint {fingerprint(model)}): {advice}"
            )


def json_schema() -> dict[str, Any]:
    """JSON Schema of profile.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Profile.model_json_schema()}


_ANEW = "make it anew with: halfv calibrate --model ID"


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or one sentence about why there is none."""
    if path.is_dir():
        raise HalfVError(f"{path} is a folder: give the profile.json in it")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HalfVError(f"{path} does not exist: make a profile with: halfv calibrate --model ID") from None
    except OSError as error:
        raise HalfVError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except UnicodeDecodeError:
        raise HalfVError(f"{path} is not UTF-8 text: give a profile.json written by halfv calibrate") from None
    except json.JSONDecodeError as error:
        raise HalfVError(f"{path} is not complete JSON (line {error.lineno}): {_ANEW}") from None
    except RecursionError:
        raise HalfVError(f"{path} is not complete JSON (nested too deeply): {_ANEW}") from None
    except ValueError:  # Python reads no number of more than 4300 digits
        raise HalfVError(f"{path} holds a number of thousands of digits: {_ANEW}") from None
    if not isinstance(raw, dict):
        raise HalfVError(f"{path} holds a JSON {type(raw).__name__} and not an object: {_ANEW}")
    return raw


def _check_version(path: object, version: object) -> None:
    if not isinstance(version, str):
        raise HalfVError(f"{path} has no schema_version, so it is no HalfV profile: {_ANEW}")
    if version.split(".")[0] not in READABLE:
        raise HalfVError(
            f"{path} has schema version {version}, and this HalfV reads {' and '.join(f'{n}.x' for n in READABLE)}: "
            "install the HalfV that wrote it, or calibrate again"
        )


def _first_problem(error: ValidationError) -> str:
    """Field, message and value of the first of pydantic's complaints."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if not first["loc"]:
        return message
    field = ".".join(str(part) for part in first["loc"])
    value = "" if first["type"] == "missing" else f" (it is {str(first['input'])[:60]!r})"
    return f"{field}: {message[0].lower()}{message[1:]}{value}"
