"""What a calibration is asked to do: the command line fills it, the journal compares it, the profile keeps it.

Its fields are plain, so that it reads back from JSON as it was.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from halfv_accel.plan import Fidelity

Share = Annotated[float, Field(ge=0, le=1)]


class Document(BaseModel):
    """Part of a profile: unchangeable, and deaf to fields of later minor versions."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Goal(Document):
    """What the choice was asked to do."""

    kind: Literal["paper", "max_drop", "target_flops"] = "paper"
    value: Share | None = Field(default=None, description="The drop not to exceed, or the FLOPs to stay within.")
    confidence: Share = Field(default=0.99, description="Of the one-sided bound on the drop.")


class DataReading(Document):
    """How data was read, where its own form does not say it; as `halfv_data.Reading` has it."""

    columns: dict[str, str] = Field(default_factory=dict)
    images: str | None = None
    config: str | None = None
    split: str | None = None
    turns: Literal["first", "all"] = "first"
    skip_bad: bool = False


class Settings(Document):
    """One calibration: of what, on what, and how.

    Parameters
    ----------
    model_id, data, data_fingerprint : str
        Names of the model and of the samples, and what tells these samples from others.
    reading : DataReading, optional
        What else is needed to draw these samples again.
    seed : int
        Which samples were drawn, the bootstrap, and the null model's weights.
    fidelity : {"paper", "reference"}
        Where paper and public code part, which of them to follow.
    k : "elbow", int or float
        Eigenvalues that enter the entropy: found, given, or as many as hold this share of the energy.
    goal : Goal
        The paper's ratios by default; or a drop not to exceed, or FLOPs to stay within.
    latency : bool
        Also measure by the clock what pruning saves; the choice does not depend on it.
    null_samples : int
        Samples on which the same architecture with fresh random weights is measured beside the model; 0 for none.
    """

    model_id: str = "unnamed"
    data: str = "given"
    data_fingerprint: str = ""
    reading: DataReading | None = None
    seed: int = 0
    fidelity: Fidelity = "paper"
    k: Literal["elbow"] | int | float = "elbow"
    goal: Goal = Field(default_factory=Goal)
    latency: bool = False
    null_samples: int = Field(default=0, ge=0)

    def measured(self) -> dict[str, object]:
        """What every measurement depends on; samples, goals, k and the clock may change before it is gone on with."""
        return self.model_dump(include={"seed", "fidelity"})
