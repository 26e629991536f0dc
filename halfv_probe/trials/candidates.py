"""Plans worth trying: the paper's ratios at other layers, and a grid of ratios for those who set a goal of their own.

A candidate is HalfV's plan in numbers (Table 9): prune once at L_IVR, then nothing, `sparse` or `freeze` from L_SSR on.
A retention of 1 leaves the first stage out. Costs are exact prefill FLOPs of the decoder, selection included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from halfv_accel import HalfVError
from halfv_accel.flops import prefill_flops, selection_flops
from halfv_accel.plan import Fidelity, Plan, SSRMode, halfv_plan
from halfv_accel.strategies import ScoredBy

# Table 9: the Qwen row for sparse, the LLaVA-1.5 rows for freeze. (R_IVR, R_S, kept by SSR)
PAPER = {"sparse": (0.25, 0.1, 0.05), "freeze": (0.5, 0.2, None)}
RETENTIONS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
SPARSE = (0.1, 0.05)
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
        """Exact prefill FLOPs of the decoder, selection included / untouched, for so many tokens."""
        plan = self.plan()
        whole = prefill_flops(config, visual, text)
        return (prefill_flops(config, visual, text, plan) + selection_flops(config, visual, plan)) / whole


def anchor_ratio(retention: float) -> float:
    """R_S as in Table 9: 0.2 where half or more of the tokens stay, 0.1 where fewer do."""
    return 0.2 if retention >= 0.5 else 0.1


def paper_candidates(depth: int, ivr_layers: Iterable[int]) -> Iterator[Candidate]:
    """The paper's ratios for both modes, at these IVR layers and every SSR layer behind them."""
    for ivr in ivr_layers:
        for mode, (retention, anchors, kept) in PAPER.items():
            for ssr in _behind(ivr, mode, depth):
                yield Candidate(ivr, retention, anchors, mode, ssr, kept)  # type: ignore[arg-type]


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
    """Pruning once, at every layer, with the ratios of Appendix E."""
    for layer in range(1, depth):
        for retention in UTILITY_RETENTIONS:
            yield Candidate(layer, retention, anchor_ratio(retention))


def _behind(ivr: int, mode: str, depth: int) -> range:
    """Layers at which the second stage may begin; only a freeze may share the first stage's layer."""
    return range(ivr if mode == "freeze" else ivr + 1, depth)
