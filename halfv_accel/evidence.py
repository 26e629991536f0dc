"""The measurements behind a profile's choices: what a report draws, and what an expert would ask for.

Entropies and divergences are in nats, ratios are kept / all, layers are counted from 0. A curve over boundaries has
L + 1 values (the input of each layer, then the output of the last), a curve over layers has L. What a calibration did
not measure is empty or absent, so documents of earlier minor versions stay readable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from halfv_accel.plan import Fidelity, Plan, SSRMode, halfv_plan

Ratio = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Layer = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Curve = Literal["visual", "text", "all"]


class Document(BaseModel):
    """Part of a profile: unchangeable, and deaf to fields of later minor versions."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Trial(Document):
    """One plan, run on the calibration samples."""

    ivr_layer: Layer
    ivr_retention: Ratio
    anchor_ratio: Share
    ssr_mode: SSRMode = "none"
    ssr_layer: Layer | None = None
    ssr_retention: Ratio | None = None
    flops: Finite = Field(
        gt=0, description="Exact prefill FLOPs / untouched, decoder and selection, for a prompt of mean size."
    )
    agreement: Share = Field(description="Share of samples whose reply (at most 8 tokens) stays the untouched model's.")
    drop: Share = Field(description="Share of samples whose right answer is lost; without answers 1 - agreement.")
    kl: Finite = Field(description="KL of the next-token distribution, mean over the reply's tokens, nats.")
    samples: int = Field(ge=1, description="Samples it was run on.")

    def plan(self, fidelity: Fidelity = "paper") -> Plan:
        """The stages of this trial."""
        measured = {"flops", "agreement", "drop", "kl", "samples"}
        return halfv_plan(**self.model_dump(exclude=measured), fidelity=fidelity)


class Utility(Document):
    """Marginal utility of pruning once (Eq. 3, Appendix E): what a layer and a ratio cost for what they save."""

    layer: Layer
    retention: Ratio
    drop: Share = Field(description="-dM: share of answers lost (see Trial).")
    kl: Finite = Field(description="KL of the next-token distribution, nats.")
    flops_saved: Finite = Field(description="dC by arithmetic: 1 - exact prefill FLOPs / untouched.")
    latency_saved: Finite | None = Field(default=None, description="dC by the clock: 1 - prefill seconds / untouched.")
    utility: Finite = Field(description="drop / (flops_saved + 0.01); lower is better.")


class Goal(Document):
    """What the choice was asked to do."""

    kind: Literal["paper", "max_drop", "target_flops"] = "paper"
    value: Share | None = Field(default=None, description="The drop not to exceed, or the FLOPs to stay within.")
    confidence: Share = Field(default=0.95, description="Of the one-sided bound on the drop.")


class Evidence(Document):
    """The measurements behind the choices."""

    k: int = Field(ge=1, description="Eigenvalues in the truncated matrix entropy.")
    k_source: Literal["elbow", "fixed", "energy"] = "elbow"
    entropy: dict[Curve, list[Finite]] = Field(
        description="Mean truncated matrix entropy before each layer and after the last, nats.",
        json_schema_extra={"required": list(get_args(Curve))},
    )
    entropy_std: dict[Curve, list[Finite]] = Field(
        default_factory=dict, description="Standard deviation over samples of `entropy`, nats."
    )
    tail_mass: dict[Curve, list[Finite]] = Field(
        default_factory=dict, description="Share of the energy behind eigenvalue k (Eq. 22), by boundary."
    )
    full_entropy_low: list[Finite] = Field(
        default_factory=list, description="Least untruncated entropy of visual tokens that Eq. 26 allows, nats."
    )
    full_entropy_high: list[Finite] = Field(default_factory=list, description="Largest, as `full_entropy_low`.")
    effective_rank: list[Finite] = Field(default_factory=list, description="exp(entropy) of visual tokens (Eq. 19).")
    participation_ratio: list[Finite] = Field(default_factory=list, description="Of visual tokens (Eq. 20).")
    curvature: list[Finite] = Field(default_factory=list, description="Curvature energy of visual tokens (Eq. 27).")
    turning: list[Finite] = Field(default_factory=list, description="Mean 1 - cos of the turning angle (Eq. 32).")
    spectrum: list[list[Finite]] = Field(
        default_factory=list, description="By boundary: largest eigenvalues of visual tokens / their sum, mean."
    )
    layer_kl: list[Finite] = Field(
        default_factory=list, description="KL when one layer stops updating visual tokens (Appendix F), nats."
    )
    suffix_kl: list[Finite] = Field(
        default_factory=list, description="KL when a layer and all behind it stop updating visual tokens, nats."
    )
    suffix_agreement: list[Share] = Field(
        default_factory=list, description="Share of samples whose next token that leaves unchanged."
    )
    utility: list[Utility] = Field(default_factory=list, description="Marginal utility by layer and retention.")
    trials: list[Trial] = Field(default_factory=list, description="Plans that were run, the cheapest first.")
    votes: dict[Literal["ivr", "ssr", "mode"], dict[str, Share]] = Field(
        default_factory=dict, description="How often each value won when the samples were drawn anew (bootstrap)."
    )
    curve_only: dict[Literal["ivr", "ssr"], int] = Field(
        default_factory=dict, description="The layers that the entropy curve alone would have given."
    )
    goal: Goal = Field(default_factory=Goal)
    choices: dict[str, str] = Field(default_factory=dict, description="Why each layer and mode was chosen.")
    untouched_accuracy: Share | None = Field(
        default=None, description="Share of samples that the untouched model answers right; absent without answers."
    )
    flops: Finite | None = Field(default=None, description="Exact prefill FLOPs of the plan / untouched.")
    agreement: Share | None = Field(
        default=None, description="Share of samples whose reply (at most 8 tokens) the profile leaves unchanged."
    )
    drop: Share | None = Field(default=None, description="Share of samples whose right answer is lost (see Trial).")
    drop_bound: Share | None = Field(default=None, description="Upper confidence bound of `drop` (Clopper-Pearson).")
    stable: bool = Field(
        default=True, description="Does the curve show three stages? If not, the plan is a cautious fallback."
    )

    @field_validator("entropy")
    @classmethod
    def _has_all_curves(cls, entropy: dict[Curve, list[float]]) -> dict[Curve, list[float]]:
        missing = [name for name in get_args(Curve) if name not in entropy]
        if missing:
            raise ValueError(f"the curve of {' and of '.join(missing)} is missing")
        return entropy

    def check_depth(self, layers: int) -> None:
        """Refuse curves that do not fit a model of so many layers.

        Raises
        ------
        ValueError
        """
        for name, curve, expected in self._lengths(layers):
            if len(curve) != expected:
                raise ValueError(f"evidence.{name} has {len(curve)} values, but {layers} layers need {expected}")

    def _lengths(self, layers: int) -> Iterator[tuple[str, list, int]]:
        """Every curve that was measured, with its name and the length that it must have."""
        for field in ("entropy", "entropy_std", "tail_mass"):
            for tokens, curve in getattr(self, field).items():
                yield f"{field}.{tokens}", curve, layers + 1
        boundaries = ("full_entropy_low", "full_entropy_high", "effective_rank", "participation_ratio")
        for field in (*boundaries, "curvature", "turning", "spectrum"):
            if getattr(self, field):
                yield field, getattr(self, field), layers + 1
        for field in ("layer_kl", "suffix_kl", "suffix_agreement"):
            if getattr(self, field):
                yield field, getattr(self, field), layers
