"""The measurements behind a profile's choices: what a report draws, and what an expert would ask for.

Entropies and divergences are in nats, ratios are kept / all, layers are counted from 0. A curve over boundaries has
L + 1 values (the input of each layer, then the output of the last), a curve over layers has L. What a calibration did
not measure is empty or absent, so documents of earlier minor versions stay readable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from halfv_accel.plan import Fidelity, Plan, SSRMode, halfv_plan
from halfv_accel.settings import Document, Goal, Share
from halfv_accel.strategies import ScoredBy

Ratio = Annotated[float, Field(gt=0, le=1)]
Layer = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Curve = Literal["visual", "text", "all"]


Choice = Literal["ivr", "ssr", "mode"]


class Trial(Document):
    """One plan, run on the calibration samples."""

    ivr_layer: Layer
    ivr_retention: Ratio
    anchor_ratio: Share
    ssr_mode: SSRMode = "none"
    ssr_layer: Layer | None = None
    ssr_retention: Ratio | None = None
    ivr_scored_by: ScoredBy = "previous"
    ssr_scored_by: ScoredBy = "previous"
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
    utility: Finite = Field(
        description="drop / (saved + 0.01), saved by the clock where it was measured, else in FLOPs; lower is better."
    )


class StageUtility(Document):
    """Marginal utility by stage, as Table 1 has it: means over the layers of a stage and the ratios of Appendix E."""

    stage: Literal["I", "II start", "II middle", "III"]
    layers: list[int]
    saved: Finite = Field(description="dC: share of the prefill saved, by the clock where that was measured.")
    utility: Finite = Field(description="Mean of `Utility.utility`; lower is better.")


class Witness(Document):
    """What one curve says about where a stage begins."""

    curve: Literal["visual entropy", "text entropy", "attention", "layer KL", "suffix KL", "maturity", "flow"]
    layer: int | None = Field(default=None, description="The decoder layer that it names; absent if it names none.")
    says: str


class Isolated(Document):
    """The second stage alone, with nothing pruned before it, on the calibration samples (Table 2, Figure 8)."""

    mode: Literal["freeze", "sparse", "withdraw"]
    layer: Layer
    scored_by: ScoredBy = "previous"
    flops: Finite = Field(gt=0, description="Exact prefill FLOPs / untouched.")
    agreement: Share = Field(description="As in Trial.")
    drop: Share = Field(description="As in Trial.")
    kl: Finite = Field(description="As in Trial.")
    samples: int = Field(ge=1)


class Verdict(Document):
    """One choice as each kind of evidence makes it; absent where it has no say."""

    curve: str | None = None
    kl: str | None = None
    trials: str | None = None
    agree: bool = Field(description="Do those that have a say say the same, give or take one layer?")


class NullModel(Document):
    """The same architecture with fresh random weights: what curves look like where nothing was learned."""

    seed: int
    samples: int = Field(ge=1)
    entropy: dict[Curve, list[Finite]] = Field(description="As in Evidence, with the same k.")
    layer_kl: list[Finite]


class Spread(Document):
    """A curve over boundaries: mean and standard deviation over samples, nats."""

    mean: list[Finite]
    std: list[Finite]


class Held(Document):
    """The stages and the choice again, under another condition."""

    about: Literal["k", "thresholds", "samples", "halves", "task"]
    condition: str
    stable: bool
    ivr: int = Field(description="L_IVR by the curves.")
    ssr: int = Field(description="L_SSR by the curves.")
    mode: SSRMode = Field(description="Of the plan that would be chosen.")
    plan: str = Field(description="The plan that would be chosen of those that were run.")
    flips: list[Literal["stable", "ivr", "ssr", "mode", "plan"]] = Field(
        default_factory=list,
        description="What differs from the choice that was made; layers by more than a twelfth of the depth.",
    )


class Measured(Document):
    """What the calibration of another published method was asked and found; what it has no use for is empty.

    ShortV's KL is `Evidence.layer_kl`, which HalfV measures, too.
    """

    method: str
    options: dict[str, Finite] = Field(default_factory=dict, description="What it was asked, by the option's name.")
    withdrawal_kl: list[Finite] = Field(
        default_factory=list,
        description="VTW: KL of the next token when no layer from this one on sees a visual token, by layer, nats.",
    )
    withdrawal_agreement: list[Share] = Field(
        default_factory=list, description="VTW: share of samples whose next token that leaves unchanged, by layer."
    )
    text_attention: list[Finite] = Field(
        default_factory=list,
        description="FitPrune: attention that visual tokens receive from a text token, each of the head that gives it "
        "most, summed over them, by layer; mean over samples.",
    )
    visual_attention: list[Finite] = Field(
        default_factory=list, description="FitPrune: the same from a visual token, by layer."
    )
    attention_lost: Share | None = Field(
        default=None, description="FitPrune: alpha, the share of a layer's attention that may go with its tokens."
    )
    effective_rank: list[Finite] = Field(
        default_factory=list,
        description="AdaVTP: effective rank of each sample's visual tokens in front of the decoder, from singular "
        "values; their mean is erank_avg.",
    )


class Evidence(Document):
    """The measurements behind the choices: HalfV's own, or those that another method `measured`."""

    k: int = Field(
        default=0, ge=0, description="Eigenvalues in the truncated matrix entropy; at least 1 in a profile of HalfV's."
    )
    k_source: Literal["elbow", "fixed", "energy"] = "elbow"
    entropy: dict[Curve, list[Finite]] = Field(
        default_factory=dict,
        description="Mean truncated matrix entropy before each layer and after the last, nats; HalfV's always has it.",
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
    entropy_by_k: dict[str, dict[Curve, Spread]] = Field(
        default_factory=dict, description="The curves again for other numbers of eigenvalues, by that number."
    )
    attention_to_visual: list[Share] = Field(
        default_factory=list, description="Share of the text tokens' attention that goes to visual ones, by layer."
    )
    maturity: list[Share] = Field(
        default_factory=list,
        description="By boundary: share of samples whose most likely next token (logit lens) is final from there on.",
    )
    null: NullModel | None = Field(default=None, description="The yardstick of `stable`, where it was measured.")
    witnesses: dict[Literal["ivr", "ssr"], list[Witness]] = Field(
        default_factory=dict, description="What each curve says about where Stage II and Stage III begin."
    )
    isolated: list[Isolated] = Field(default_factory=list, description="The second stage alone, by mode and layer.")
    verdicts: dict[Choice, Verdict] = Field(
        default_factory=dict, description="Each choice by curve, by KL and by trials."
    )
    holds: list[Held] = Field(default_factory=list, description="Does the choice hold under other conditions?")
    utility: list[Utility] = Field(default_factory=list, description="Marginal utility by layer and retention.")
    utility_by_stage: list[StageUtility] = Field(default_factory=list, description="As Table 1.")
    trials: list[Trial] = Field(default_factory=list, description="Plans that were run, the cheapest first.")
    votes: dict[Choice, dict[str, Share]] = Field(
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
    measured: Measured | None = Field(default=None, description="Absent where HalfV's own method was calibrated.")

    @model_validator(mode="after")
    def _says_what_was_measured(self) -> Evidence:
        needed = {"k": self.k, "entropy": self.entropy}
        missing = [name for name, value in needed.items() if not value]
        if self.measured is None and missing:
            raise ValueError(f"without measured there must be {' and '.join(missing)}")
        return self

    def unsaid(self) -> dict[str, Any]:
        """What a file leaves out, as pydantic's `exclude`: all that another method's calibration has no word on."""
        if self.measured is None:
            return {"measured": True}
        return {**dict.fromkeys(_defaults(self), True), "measured": _defaults(self.measured)}

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
        for k, curves in self.entropy_by_k.items():
            for tokens, spread in curves.items():
                yield f"entropy_by_k.{k}.{tokens}.mean", spread.mean, layers + 1
                yield f"entropy_by_k.{k}.{tokens}.std", spread.std, layers + 1
        if self.null is not None:
            for tokens, curve in self.null.entropy.items():
                yield f"null.entropy.{tokens}", curve, layers + 1
            yield "null.layer_kl", self.null.layer_kl, layers
        if self.maturity:
            yield "maturity", self.maturity, layers + 1
        for field in ("layer_kl", "suffix_kl", "suffix_agreement", "attention_to_visual"):
            if getattr(self, field):
                yield field, getattr(self, field), layers
        for field in ("withdrawal_kl", "withdrawal_agreement", "text_attention", "visual_attention"):
            if getattr(self.measured, field, []):
                yield f"measured.{field}", getattr(self.measured, field), layers


def _defaults(document: Document) -> set[str]:
    """Names of the fields that hold what they hold by default."""
    fields = type(document).model_fields.items()
    return {name for name, field in fields if getattr(document, name) == field.get_default(call_default_factory=True)}
