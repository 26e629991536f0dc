"""A plan is a list of stages: WHERE, WHICH visual tokens stay, and WHAT becomes of the others.

A stage at layer l acts on the *input* of decoder layer l, counted from 0, as L_IVR and L_SSR do in Table 9. So a stage
at layer 0 acts before the language model, on the projected visual features. Beside the stages, a plan may name layers
in which visual tokens are not updated (`skip`, ShortV); freezing them at a layer is to skip all layers from there on.
And before all that, pictures may be shrunk (`downsample`); the stages then count from the tokens that these have.

HalfV (§3.3) is two stages. The first, IVR, keeps a relevant and well spread subset at the onset of Stage II and drops
the rest; the second, SSR, either drops nearly everything (`sparse`, the Qwen family) or stops updating what is left
(`freeze`, Eq. 7, the LLaVA family).

>>> plan = halfv_plan(ivr_layer=3, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=15)
>>> [(stage.name, stage.layer, stage.then) for stage in plan.stages]
[('ivr', 3, 'drop'), ('ssr', 15, 'freeze')]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from halfv_accel.budget import token_budget
from halfv_accel.downsample import Downsample
from halfv_accel.errors import HalfVError
from halfv_accel.strategies import (
    Adaptive,
    AnchorCover,
    KeepNone,
    LastTokenAttention,
    Merging,
    ScoredBy,
    Strategy,
    needs_of,
    resolve,
)

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
        Decoder layer, counted from 0, whose input the stage acts on. 0 is before the language model; at least 1 where
        the strategy looks at the layer before.
    strategy : Strategy or str
        Which tokens stay, as an object or the name of a registered strategy with default parameters.
    retention : float
        Kept / all, of the row's original visual tokens; the most, where the strategy decides itself how many.
    then : {"drop", "freeze"}
        What becomes of the others: gone from this and all later layers, or no longer updated but still attended to.
    tokens : int, optional
        Visual tokens of each row that stay, whatever it has, as papers count them. Instead of the retention.
    least : float, optional
        Only with a strategy that decides itself how many tokens stay: the smallest retention that it may choose.
    """

    name: str
    layer: int
    strategy: Strategy
    retention: float = 1.0
    then: Then = "drop"
    tokens: int | None = None
    least: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", resolve(self.strategy))
        self._check_layer()
        if self.then not in ("drop", "freeze"):
            raise HalfVError(f"stage '{self.name}' has then={self.then!r}: choose 'drop' or 'freeze'")
        none = isinstance(self.strategy, KeepNone)
        if not (self.retention == 0 if none else _is_ratio(self.retention)):
            range_ = "0, as keep_none keeps nothing" if none else "a number in (0, 1]"
            raise HalfVError(f"stage '{self.name}' has retention {self.retention!r}: give {range_}")
        if self.tokens is not None:
            if none or not _is_whole(self.tokens, 1):
                raise HalfVError(f"stage '{self.name}' has tokens={self.tokens!r}: give a whole number of at least 1")
            if self.retention != 1:
                raise HalfVError(f"stage '{self.name}' has a retention and a number of tokens: give one of them")
        if self.then == "freeze" and isinstance(self.strategy, Merging):
            raise HalfVError(f"stage '{self.name}' merges tokens and freezes them: choose then='drop'")
        self._check_least()

    def most(self, visual: int) -> int:
        """The most tokens that may stay of a row that had so many."""
        return token_budget(visual, self.retention) if self.tokens is None else min(self.tokens, visual)

    def fewest(self, visual: int) -> int:
        """The fewest; without `least` as many as `most`."""
        return self.most(visual) if self.least is None else min(token_budget(visual, self.least), self.most(visual))

    @property
    def keeps_everything(self) -> bool:
        return self.retention == 1 and self.tokens is None and self.least is None

    def _check_layer(self) -> None:
        before = needs_of(self.strategy).before
        if not _is_whole(self.layer, 1 if before else 0):
            why = ", because tokens are scored with the layer before" if before else ""
            raise HalfVError(
                f"stage '{self.name}' has layer {self.layer!r}: give a whole number of at least {int(before)}{why}"
            )

    def _check_least(self) -> None:
        if self.least is None:
            return
        if not isinstance(self.strategy, Adaptive):
            raise HalfVError(f"stage '{self.name}' has least={self.least!r}, but its strategy keeps a fixed share")
        if not _is_ratio(self.least) or (self.tokens is None and self.least > self.retention):
            raise HalfVError(f"stage '{self.name}' has least={self.least!r}: give a number in (0, its retention]")


@dataclass(frozen=True)
class Plan:
    """Stages in the order in which they run.

    Parameters
    ----------
    stages : tuple of Stage
        Sorted by layer. A `freeze` is the last one. There may be none where layers are skipped or pictures shrunk.
    fidelity : {"paper", "reference"}
        "paper" follows the equations. "reference" follows the authors' public code where it deviates from them:
        attention scores without 1/sqrt(d), and farthest points among states that went through the final norm.
    min_visual_tokens : int
        A prompt with fewer visual tokens is left alone, because choosing among them would cost more than it saves.
    skip : tuple of int
        Decoder layers, counted from 0, that do not update visual tokens: these only provide keys and values there.
    downsample : Downsample, optional
        To how many visual tokens the pictures are shrunk before the processor cuts them up. Where prompts are made does
        that; a model sees no pictures, so it is given the plan's `inside`. `min_visual_tokens` and the stages' budgets
        count what is left.
    """

    stages: tuple[Stage, ...]
    fidelity: Fidelity = "paper"
    min_visual_tokens: int = 0
    skip: tuple[int, ...] = ()
    downsample: Downsample | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "skip", tuple(sorted(set(self.skip))))
        wrong = [layer for layer in self.skip if not _is_whole(layer, 0)]
        if wrong:
            raise HalfVError(f"the plan skips layer {wrong[0]!r}: give whole numbers of at least 0")
        if self.fidelity not in ("paper", "reference"):
            raise HalfVError(f"fidelity is {self.fidelity!r}: choose 'paper' or 'reference'")
        if not self.stages and not self.skip and self.downsample is None:
            raise HalfVError("the plan has no stage: give at least one, e.g. with halfv_plan(...)")
        least = self.min_visual_tokens
        if not _is_whole(least, 0):
            raise HalfVError(f"min_visual_tokens is {least!r}: give a whole number of tokens, or 0 for every prompt")
        for before, after in pairwise(self.stages):
            _check_order(before, after)

    @property
    def keeps_everything(self) -> bool:
        """Is nothing ever taken away, so that nothing has to be refused?"""
        return not self.shrinks and not self.skip and all(stage.keeps_everything for stage in self.stages)

    @property
    def shrinks(self) -> bool:
        """Are pictures to be made smaller?"""
        return self.downsample is not None and not self.downsample.keeps_everything

    @property
    def inside(self) -> Plan:
        """What is left to do in the model once the pictures are shrunk."""
        if self.downsample is None:
            return self
        return replace(self, downsample=None if self.stages or self.skip else Downsample())

    @property
    def freezes(self) -> bool:
        """Are there tokens that only provide keys and values in some layer?"""
        return bool(self.skip) or any(stage.then == "freeze" for stage in self.stages)

    @property
    def first(self) -> int:
        """The first decoder layer whose input the plan has to see; beyond all where it acts in none."""
        needs = [needs_of(stage.strategy) for stage in self.stages]
        if any(need.prompt for need in needs):
            return 0
        seen = [stage.layer - need.before for stage, need in zip(self.stages, needs, strict=True)]
        return min([*seen, *self.skip], default=sys.maxsize)

    def spares(self, visual: int) -> bool:
        """Is a prompt with so few visual tokens left alone?"""
        return visual < self.min_visual_tokens

    def check_depth(self, num_layers: int) -> None:
        """Refuse a plan that acts on layers the model does not have."""
        for stage in self.stages:
            if stage.layer >= num_layers:
                least = int(needs_of(stage.strategy).before)
                raise HalfVError(
                    f"stage '{stage.name}' acts on layer {stage.layer}, but the model has {num_layers} "
                    f"layers: choose a layer from {least} to {num_layers - 1}"
                )
        if self.skip and self.skip[-1] >= num_layers:
            raise HalfVError(
                f"the plan skips layer {self.skip[-1]}, but the model has {num_layers} layers: "
                f"choose layers from 0 to {num_layers - 1}"
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


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


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
