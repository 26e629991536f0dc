"""Plans worth trying: the paper's ratios at other layers, and a grid of ratios for those who set a goal of their own.

A candidate is HalfV's plan in numbers (Table 9): prune once at L_IVR, then nothing, `sparse` or `freeze` from L_SSR on.
A retention of 1 leaves the first stage out. Costs are exact prefill FLOPs of the decoder, selection included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal

from halfv_accel import HalfVError
from halfv_accel.flops import prefill_flops, selection_flops
from halfv_accel.plan import Fidelity, Plan, SSRMode, Stage, Then, halfv_plan
from halfv_accel.strategies import AnchorCover, KeepNone, LastTokenAttention, ScoredBy

# Table 9: the Qwen row for sparse, the LLaVA-1.5 rows for freeze. (R_IVR, R_S, kept by SSR)
PAPER: dict[SSRMode, tuple[float, float, float | None]] = {
    "sparse": (0.25, 0.1, 0.05),
    "freeze": (0.5, 0.2, None),
    "none": (0.5, 0.2, None),
}
ALONE_KEPT = 0.05  # Table 2 (e), Figure 8
ANCHORS = (0.0, 0.1, 0.2, 0.5)  # R_S, Figure 6
SCORERS: tuple[ScoredBy, ...] = ("previous", "own")
RETENTIONS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
SPARSE = (0.1, 0.05)
UTILITY_LAYERS = 16
UTILITY_RETENTIONS = (0.5, 0.25, 0.125)  # Appendix E


@dataclass(frozen=True, order=True)
class Candidate:
    """One HalfV plan; layers are counted from 0, ratios are kept / all of the original visual tokens."""

    ivr_layer: int
    ivr_retention: float
    anchor_ratio: float
    ssr_mode: SSRMode = "none"
    ssr_layer: int | None = None
    ssr_retention: float | None = None
    ivr_scored_by: ScoredBy = "previous"
    ssr_scored_by: ScoredBy = "previous"

    def plan(self, fidelity: Fidelity = "paper") -> Plan:
        return halfv_plan(**asdict(self), fidelity=fidelity)

    def flops(self, config: Any, visual: int, text: int) -> float:
        return relative_flops(self.plan(), config, visual, text)

    def variants(self) -> Iterator[Candidate]:
        """The same layers, mode and ratios with every R_S, and scored by either layer; itself comes along."""
        second: tuple[ScoredBy, ...] = SCORERS if self.ssr_mode == "sparse" else ("previous",)
        for anchors, first, then in product(ANCHORS, SCORERS, second):
            yield replace(self, anchor_ratio=anchors, ivr_scored_by=first, ssr_scored_by=then)

    @property
    def plain(self) -> Candidate:
        """The same with the anchors that Table 9 has for such a ratio, and anchors scored as in the public code."""
        return replace(self, anchor_ratio=anchor_ratio(self.ivr_retention), ivr_scored_by="previous")

    @property
    def kind(self) -> tuple[int, float, SSRMode, int | None, float | None]:
        """What variants share."""
        return self.ivr_layer, self.ivr_retention, self.ssr_mode, self.ssr_layer, self.ssr_retention

    @classmethod
    def of(cls, plan: Plan) -> Candidate:
        """The candidate that a plan of HalfV's is, e.g. a row of Table 9."""
        ivr, *rest = plan.stages
        anchors = ivr.strategy
        if not isinstance(anchors, AnchorCover):
            raise ValueError(f"stage '{ivr.name}' is not AnchorCover's, so this is no plan of HalfV's")
        first = cls(ivr.layer, ivr.retention, anchors.anchor_ratio, ivr_scored_by=anchors.scored_by)
        if not rest:
            return first
        ssr = rest[0]
        if ssr.then == "freeze":
            return replace(first, ssr_mode="freeze", ssr_layer=ssr.layer)
        by = ssr.strategy.scored_by if isinstance(ssr.strategy, LastTokenAttention) else "previous"
        return replace(first, ssr_mode="sparse", ssr_layer=ssr.layer, ssr_retention=ssr.retention, ssr_scored_by=by)


@dataclass(frozen=True, order=True)
class Alone:
    """The second stage alone, with nothing pruned before it (Table 2, Figure 8).

    ``withdraw`` drops all visual tokens, which no plan of HalfV's does: it says what there was to lose.
    """

    mode: Literal["freeze", "sparse", "withdraw"]
    layer: int
    scored_by: ScoredBy = "previous"

    def plan(self, fidelity: Fidelity = "paper") -> Plan:
        if self.mode == "sparse":
            return Plan((Stage("ssr", self.layer, LastTokenAttention(True, self.scored_by), ALONE_KEPT),), fidelity)
        then: Then = "freeze" if self.mode == "freeze" else "drop"
        return Plan((Stage("ssr", self.layer, KeepNone(), 0.0, then),), fidelity)

    def flops(self, config: Any, visual: int, text: int) -> float:
        return relative_flops(self.plan(), config, visual, text)


def relative_flops(plan: Plan, config: Any, visual: int, text: int) -> float:
    """Exact prefill FLOPs of the decoder, selection included / untouched, for so many tokens."""
    whole = prefill_flops(config, visual, text)
    return (prefill_flops(config, visual, text, plan) + selection_flops(config, visual, plan, text)) / whole


def anchor_ratio(retention: float) -> float:
    """R_S as in Table 9: 0.2 where half or more of the tokens stay, 0.1 where fewer do."""
    return 0.2 if retention >= 0.5 else 0.1


def alone_candidates(layers: Iterable[int]) -> Iterator[Alone]:
    """Every mode of the second stage at these layers, ``sparse`` scored by either layer."""
    for layer in layers:
        yield Alone("freeze", layer)
        yield Alone("withdraw", layer)
        for scored_by in SCORERS:
            yield Alone("sparse", layer, scored_by)


def paper_candidates(
    depth: int, ivr_layers: Iterable[int], ssr_layers: Iterable[int], mode: SSRMode
) -> Iterator[Candidate]:
    """The paper's ratios for one mode, at these layers; without a second stage, half of the tokens stay."""
    retention, anchors, kept = PAPER[mode]
    scorers: tuple[ScoredBy, ...] = SCORERS if mode == "sparse" else ("previous",)
    later = list(ssr_layers)
    for ivr in ivr_layers:
        if mode == "none":
            yield Candidate(ivr, retention, anchors)
            continue
        for ssr in sorted(set(later) & set(_behind(ivr, mode, depth))):
            for scored_by in scorers:
                yield Candidate(ivr, retention, anchors, mode, ssr, kept, ssr_scored_by=scored_by)


def all_candidates(depth: int, retentions: Sequence[float] = RETENTIONS) -> Iterator[Candidate]:
    """Every layer pair, mode and ratio of the grid."""
    for retention in retentions:
        anchors = anchor_ratio(retention)
        for ivr in range(1, depth) if retention < 1 else (1,):
            if retention < 1:
                yield Candidate(ivr, retention, anchors)
            for ssr in _behind(ivr, "freeze", depth):
                yield Candidate(ivr, retention, anchors, "freeze", ssr)
            for kept in SPARSE:
                for ssr in _behind(ivr, "sparse", depth) if kept < retention else ():
                    yield Candidate(ivr, retention, anchors, "sparse", ssr, kept)


def affordable(candidates: Sequence[Candidate], config: Any, visual: int, text: int, budget: float) -> list[Candidate]:
    """Those within a budget of FLOPs (share of untouched).

    Raises
    ------
    HalfVError
        If there are none.
    """
    flops = [candidate.flops(config, visual, text) for candidate in candidates]
    found = [candidate for candidate, cost in zip(candidates, flops, strict=True) if cost <= budget]
    if not found:
        least = math.ceil(min(flops) * 100) / 100
        raise HalfVError(
            f"no plan needs only {budget:.0%} of the prefill FLOPs on these samples: ask for --target-flops {least:.2f}"
        )
    return found


def utility_candidates(depth: int) -> Iterator[Candidate]:
    """Pruning once, with the ratios of Appendix E, at every layer; in deep models at up to 16 layers evenly apart."""
    for layer in range(1, depth, -(-(depth - 1) // UTILITY_LAYERS)):
        for retention in UTILITY_RETENTIONS:
            yield Candidate(layer, retention, anchor_ratio(retention))


def _behind(ivr: int, mode: str, depth: int) -> range:
    """Layers at which the second stage may begin.

    Only a freeze may share the first stage's layer. It never begins at the last layer: nothing reads what that one
    makes of visual tokens, so such a plan does nothing.
    """
    return range(ivr, depth - 1) if mode == "freeze" else range(ivr + 1, depth)
