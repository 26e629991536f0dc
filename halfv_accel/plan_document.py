"""A plan as a document: what `--plan plan.json` reads, and what a profile holds.

It can say all that a `Plan` can, by the registered names of strategies and their parameters; it never names code.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from halfv_accel.downsample import Downsample
from halfv_accel.errors import HalfVError
from halfv_accel.files import write_atomically
from halfv_accel.plan import Fidelity, Plan, Stage, Then
from halfv_accel.strategies import STRATEGIES, Strategy

Share = Annotated[float, Field(ge=0, le=1)]


class StageDocument(BaseModel):
    """One stage; see `halfv_accel.plan.Stage`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    layer: int = Field(ge=0, description="Decoder layer whose input the stage acts on; 0: before the language model.")
    strategy: str = Field(description="Registered name of what chooses the tokens.")
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="Of the strategy.")
    retention: Share = Field(default=1.0, description="Visual tokens kept / all; at most, with `least`.")
    tokens: int | None = Field(default=None, ge=1, description="Visual tokens kept, instead of the retention.")
    least: Share | None = Field(default=None, description="The smallest retention that the strategy may choose.")
    then: Then = Field(default="drop", description="What becomes of the others.")

    @classmethod
    def of(cls, stage: Stage) -> StageDocument:
        name = STRATEGIES.name_of(stage.strategy)
        if name is None:
            raise HalfVError(
                f"strategy {stage.strategy!r} has no registered name, and cannot be written down: "
                "decorate its class with @register(name)"
            )
        kept = {field: getattr(stage, field) for field in ("name", "layer", "retention", "tokens", "least", "then")}
        return cls(strategy=name, parameters=parameters_of(stage.strategy), **kept)

    def stage(self) -> Stage:
        """The stage itself.

        Raises
        ------
        HalfVError
            If its strategy is not known here, or takes no such parameters.
        """
        strategy = STRATEGIES.build(self.strategy, self.parameters)
        return Stage(self.name, self.layer, strategy, self.retention, self.then, self.tokens, self.least)


class DownsampleDocument(BaseModel):
    """To how many visual tokens pictures are shrunk; see `halfv_accel.downsample.Downsample`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    retention: Share = Field(default=1.0, description="Visual tokens of a row's pictures, at most / as they are.")
    tokens: int | None = Field(default=None, ge=1, description="Their number at most, instead of the retention.")


class PlanDocument(BaseModel):
    """Stages in their order, and layers that are skipped; see `halfv_accel.plan.Plan`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    stages: tuple[StageDocument, ...] = ()
    skip: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="Decoder layers that do not update visual tokens."
    )
    downsample: DownsampleDocument | None = Field(
        default=None, description="How far pictures are shrunk before the processor cuts them up."
    )
    fidelity: Fidelity = "paper"
    min_visual_tokens: int = Field(default=0, ge=0, description="Prompts with fewer visual tokens are left alone.")

    @classmethod
    def of(cls, plan: Plan) -> PlanDocument:
        stages = tuple(StageDocument.of(stage) for stage in plan.stages)
        shrink = None
        if plan.downsample is not None:
            shrink = DownsampleDocument(retention=plan.downsample.retention, tokens=plan.downsample.tokens)
        return cls(
            stages=stages,
            skip=plan.skip,
            downsample=shrink,
            fidelity=plan.fidelity,
            min_visual_tokens=plan.min_visual_tokens,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PlanDocument:
        """Read a plan.json.

        Raises
        ------
        HalfVError
            In one sentence, whatever is wrong with it.
        """
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
            return cls.model_validate_json(text, strict=True)
        except FileNotFoundError:
            raise HalfVError(f"{path} does not exist: give the path of a plan.json, or a plan in words") from None
        except (OSError, UnicodeDecodeError) as error:
            raise HalfVError(f"{path} cannot be read ({type(error).__name__}): give a plan.json") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            message = first["msg"].removeprefix("Value error, ").rstrip(".")[:160]
            raise HalfVError(f"{path} is not a plan: {where}: {message}: see docs/methods.md for its form") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it at once or not at all."""
        write_atomically(Path(path), (self.model_dump_json(indent=2, exclude_defaults=True) + "\n").encode())

    def plan(self) -> Plan:
        """The plan itself.

        Raises
        ------
        HalfVError
            If a strategy is not known here, or the stages make no sense together.
        """
        stages = tuple(stage.stage() for stage in self.stages)
        shrink = None
        if self.downsample is not None:
            shrink = Downsample(self.downsample.retention, self.downsample.tokens)
        return Plan(stages, self.fidelity, self.min_visual_tokens, self.skip, shrink)


def json_schema() -> dict[str, Any]:
    """JSON Schema of plan.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PlanDocument.model_json_schema()}


def is_plan(path: str | os.PathLike[str]) -> bool:
    """Does a JSON file hold a plan, and not a profile? A file that cannot be read is neither."""
    try:
        raw = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(raw, dict) and "schema_version" not in raw and not {"stages", "skip", "downsample"}.isdisjoint(raw)
    )


def parameters_of(strategy: Strategy) -> dict[str, Any]:
    """A strategy's parameters, as JSON can hold them."""
    values = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}  # type: ignore[arg-type]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
