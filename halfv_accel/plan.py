"""A plan is a list of stages: WHERE, WHICH visual tokens stay, and WHAT becomes of the others.

HalfV (§3.3) is two stages. The first, IVR, keeps a relevant and well spread subset at the onset of Stage II and drops
the rest; the second, SSR, either drops nearly everything (`sparse`, the Qwen family) or stops updating what is left
(`freeze`, Eq. 7, the LLaVA family). A stage at layer l acts on the *input* of decoder layer l, counted from 0, as
L_IVR and L_SSR do in Table 9.

>>> plan = halfv_plan(ivr_layer=3, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=15)
>>> [(stage.name, stage.layer, stage.then) for stage in plan.stages]
[('ivr', 3, 'drop'), ('ssr', 15, 'freeze')]
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from halfv_accel.errors import HalfVError
from halfv_accel.strategies import AnchorCover, KeepNone, LastTokenAttention, ScoredBy, Strategy, resolve

Then = Literal["drop", "freeze"]
Fidelity = Literal["paper", "reference"]
SSRMode = Literal["sparse", "freeze", "none"]


@dataclass(frozen=True)
class Stage:
    """One reduction step.

    Parameters
    ----------
    name : str
        How reports call it, e.g. "ivr" or "ssr".
    layer : int
        Decoder layer, counted from 0, whose input the stage acts on. At least 1: scores need the layer before.
    strategy : Strategy or str
        Which tokens stay, as an object or the name of a registered strategy with default parameters.
    retention : float
        Kept / all, of the row's original visual tokens.
    then : {"drop", "freeze"}
        What becomes of the others: gone from this and all later layers, or no longer updated but still attended to.
    """

    name: str
    layer: int
    strategy: Strategy
    retention: float
    then: Then = "drop"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", resolve(self.strategy))
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or self.layer < 1:
            raise HalfVError(
                f"stage '{self.name}' has layer {self.layer!r}: give a whole number of at least 1, "
                "because tokens are scored with the layer before"
            )
        if self.then not in ("drop", "freeze"):
            raise HalfVError(f"stage '{self.name}' has then={self.then!r}: choose 'drop' or 'freeze'")
        none = isinstance(self.strategy, KeepNone)
        if not (self.retention == 0 if none else _is_ratio(self.retention)):
            range_ = "0, as keep_none keeps nothing" if none else "a number in (0, 1]"
            raise HalfVError(f"stage '{self.name}' has retention {self.retention!r}: give {range_}")


@dataclass(frozen=True)
class Plan:
    """Stages in the order in which they run.

    Parameters
    ----------
    stages : tuple of Stage
        Sorted by layer. A `freeze` is the last one.
    fidelity : {"paper", "reference"}
        "paper" follows the equations. "reference" follows the authors' public code where it deviates from them:
        attention scores without 1/sqrt(d), and farthest points among states that went through the final norm.
    min_visual_tokens : int
        A prompt with fewer visual tokens is left alone, because choosing among them would cost more than it saves.
    """

    stages: tuple[Stage, ...]
    fidelity: Fidelity = "paper"
    min_visual_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if self.fidelity not in ("paper", "reference"):
            raise HalfVError(f"fidelity is {self.fidelity!r}: choose 'paper' or 'reference'")
        if not self.stages:
            raise HalfVError("the plan has no stage: give at least one, e.g. with halfv_plan(...)")
        least = self.min_visual_tokens
        if not isinstance(least, int) or isinstance(least, bool) or least < 0:
            raise HalfVError(f"min_visual_tokens is {least!r}: give a whole number of tokens, or 0 for every prompt")
        for before, after in pairwise(self.stages):
            _check_order(before, after)

    @property
    def keeps_everything(self) -> bool:
        """Is nothing ever taken away, so that nothing has to be refused?"""
        return all(stage.retention == 1 for stage in self.stages)

    def spares(self, visual: int) -> bool:
        """Is a prompt with so few visual tokens left alone?"""
        return visual < self.min_visual_tokens

    def check_depth(self, num_layers: int) -> None:
        """Refuse a plan that acts on layers the model does not have."""
        for stage in self.stages:
            if stage.layer >= num_layers:
                raise HalfVError(
                    f"stage '{stage.name}' acts on layer {stage.layer}, but the model has {num_layers} "
                    f"layers: choose a layer from 1 to {num_layers - 1}"
                )


def halfv_plan(
    *,
    ivr_layer: int,
    ivr_retention: float,
    anchor_ratio: float = 0.1,
    ssr_mode: SSRMode = "none",
    ssr_layer: int | None = None,
    ssr_retention: float | None = None,
    ivr_scored_by: ScoredBy = "previous",
    ssr_scored_by: ScoredBy = "previous",
    fidelity: Fidelity = "paper",
    min_visual_tokens: int = 0,
) -> Plan:
    """HalfV's own plan (§3.3), from the hyperparameters of Table 9.

    Parameters
    ----------
    ivr_layer, ivr_retention, anchor_ratio
        L_IVR, R_IVR and R_S of the paper.
    ssr_mode : {"sparse", "freeze", "none"}
        How Stage III redundancy is handled.
    ssr_layer : int, optional
        L_SSR; needed unless `ssr_mode` is "none".
    ssr_retention : float, optional
        Share of the original visual tokens that `sparse` leaves; of no use to the other modes.
    ivr_scored_by, ssr_scored_by : {"previous", "own"}
        Which layer's attention ranks the anchors, and the tokens that `sparse` leaves: alpha^(L) of §3.3 taken in the
        layer before the stage, as the public code does, or in the stage's own.
    fidelity, min_visual_tokens
        As in `Plan`.
    """
    ivr = Stage("ivr", ivr_layer, AnchorCover(anchor_ratio, ivr_scored_by), ivr_retention)
    if ssr_mode == "none":
        return Plan((ivr,), fidelity, min_visual_tokens)
    if ssr_mode not in ("sparse", "freeze"):
        raise HalfVError(f"ssr_mode is {ssr_mode!r}: choose 'sparse', 'freeze' or 'none'")
    if ssr_layer is None:
        raise HalfVError(f"ssr_mode '{ssr_mode}' needs ssr_layer: give the first layer of Stage III")
    if ssr_mode == "freeze":
        return Plan((ivr, Stage("ssr", ssr_layer, KeepNone(), 0.0, "freeze")), fidelity, min_visual_tokens)
    if ssr_retention is None:
        raise HalfVError("ssr_mode 'sparse' needs ssr_retention: give the share of visual tokens to keep, e.g. 0.05")
    ssr = Stage("ssr", ssr_layer, LastTokenAttention(rotary=True, scored_by=ssr_scored_by), ssr_retention)
    return Plan((ivr, ssr), fidelity, min_visual_tokens)


def _is_ratio(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value <= 1  # type: ignore[operator]


def _check_order(before: Stage, after: Stage) -> None:
    """Stages run by ascending layer; only a freeze may share its layer with the stage before it."""
    if before.then == "freeze":
        raise HalfVError(
            f"stage '{after.name}' follows '{before.name}', which freezes the visual tokens: make the freeze last"
        )
    least = before.layer if after.then == "freeze" else before.layer + 1
    if after.layer < least:
        raise HalfVError(
            f"stage '{after.name}' ({after.then}) has layer {after.layer}, but '{before.name}' is at {before.layer}: "
            f"choose a layer of at least {least}"
        )
