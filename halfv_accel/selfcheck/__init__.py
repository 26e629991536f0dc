"""Is HalfV exact on this model? A few short prompts tell.

Three kinds of checks, each with the model's own weights. Keeping everything changes no bit. What remains after pruning
or freezing computes what the untouched model computes at full length, with the same tokens hidden or put back. And the
chosen tokens are those that a naive reading of the paper chooses.

>>> checks = selfcheck(model, inputs)  # doctest: +SKIP
>>> all(check.ok for check in checks)  # doctest: +SKIP
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halfv_accel.adapters import family_of
from halfv_accel.engine import accelerate
from halfv_accel.engine.run import runs_on
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Plan, Stage, halfv_plan
from halfv_accel.plan_text import describe_plan
from halfv_accel.selfcheck.naive import Seen, choose, received, watched
from halfv_accel.selfcheck.slow import full_length, greedy, losses, prolonged, rounded, visual_ids
from halfv_accel.strategies import AnchorCover, KeepNone, LastTokenAttention

EXACT = 1e-4  # of the largest logit, in float32
NOISE = 4  # times what roundings of the layers' outputs do to the logits, in half precision
VISIBLE = 0.25  # of the effect: a larger error is never put down to rounding


@dataclass(frozen=True)
class Check:
    """One comparison.

    Parameters
    ----------
    name : str
    error : float
        Largest difference between logits, as a share of the largest logit; for a selection, the share of chosen tokens
        that should not have been.
    tolerance : float
        Largest error that passes.
    effect : float or None
        The error of doing something else: of not pruning at all, or of choosing at random. A check whose effect does
        not stand out from its tolerance proves nothing, and fails.
    """

    name: str
    error: float
    tolerance: float
    effect: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance, and would be seen."""
        seen = self.effect is None or self.error < VISIBLE * self.effect
        return self.error <= self.tolerance and seen  # NaN is neither


@torch.no_grad()
def selfcheck(model: Any, *prompts: Mapping[str, Any], plan: Plan | None = None) -> list[Check]:
    """Compare the accelerated model with slow computations by the untouched one.

    Parameters
    ----------
    model : PreTrainedModel
        A model that `accelerate` takes.
    prompts : mappings
        What `model(**inputs)` takes: one prompt, or several padded on the left, with pictures or videos.
    plan : Plan, optional
        Check this one, and not those that HalfV's own method makes.

    Returns
    -------
    list of Check

    Raises
    ------
    HalfVError
        If the model is not supported, or if the prompts show nothing.
    """
    family = family_of(model)
    depth = len(family.layers)
    if runs_on(family.core):
        raise HalfVError("the model is accelerated already, and is to be compared untouched: leave that block first")
    if family.text.config._attn_implementation not in ("sdpa", "eager"):
        raise HalfVError(
            f"attention implementation '{family.text.config._attn_implementation}' takes no mask to compare with: "
            "call model.set_attn_implementation('sdpa') for the check"
        )
    if depth < 2:
        raise HalfVError(
            f"the model has {depth} decoder layer, and HalfV acts on the second at the earliest: give another"
        )
    if not prompts:
        raise HalfVError("there is nothing to compare: give at least one prompt with a picture")
    if plan is not None and not plan.stages and not plan.skip:
        raise HalfVError(
            "the plan has no stage and leaves the model as it is, so there is nothing to check: "
            "add stages behind downsample"
        )
    planned = plans(depth) if plan is None else {describe_plan(plan): plan}
    accelerate(model, next(iter(planned.values())))  # refuses what it cannot take, before anything is computed
    return [check for inputs in prompts for check in Bench(model, inputs).checks(planned)]


def plans(depth: int) -> dict[str, Plan]:
    """Pruning, alone and followed by either handling of the rest, in early and in middle layers."""
    found = {}
    for first, second in sorted({(1, 2), (max(1, depth // 3), max(2, 2 * depth // 3))}):
        ivr: dict[str, Any] = dict(ivr_layer=first, ivr_retention=0.4, anchor_ratio=0.3)
        found[f"prune {first}"] = halfv_plan(**ivr)
        if second < depth:
            sparse: dict[str, Any] = dict(ssr_mode="sparse", ssr_layer=second, ssr_retention=0.1)
            found[f"prune {first}, sparse {second}"] = halfv_plan(**ivr, **sparse)
            found[f"prune {first}, freeze {second}"] = halfv_plan(**ivr, ssr_mode="freeze", ssr_layer=second)
    return found


class Bench:
    """One batch of prompts on a model."""

    def __init__(self, model: Any, inputs: Mapping[str, Any]) -> None:
        self.model, self.layers = model, list(family_of(model).layers)
        self.inputs = prolonged(inputs, inputs["input_ids"][:, :0])  # with a mask in any case
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        self.visual = torch.isin(ids, torch.tensor(visual_ids(model.config), device=ids.device)) & mask.bool()
        if not bool(self.visual.any()):
            raise HalfVError("the prompt has no visual tokens: give one with a picture")
        if not bool(mask[:, -1].all()):
            raise HalfVError("the prompts are padded on the right: pad on the left, with padding_side='left'")
        self.name = f"batch of {len(ids)}"
        self.half = torch.finfo(model.dtype).bits < 32
        self.misses: dict[str, list[tuple[float, float]]] = {}  # by rule: wrong by a stage, and wrong by chance

    def checks(self, plans: Mapping[str, Plan]) -> list[Check]:
        untouched, tokens = greedy(self.model, self.inputs)
        by_hand = full_length(self.model, self.layers, self.inputs, tokens, [])
        tolerance = NOISE * gap(rounded(self.model, self.layers, self.inputs), untouched[:, :1]) if self.half else EXACT
        return [
            *self.keep_everything(untouched, tokens, *plans.values()),
            Check(f"mask by hand, {self.name}", gap(by_hand, untouched), tolerance),
            *(self.surgery(name, plan, untouched, tolerance) for name, plan in plans.items()),
            *(self.selection(rule) for rule in self.misses),
        ]

    def keep_everything(self, untouched: Tensor, tokens: Tensor, *plans: Plan) -> list[Check]:
        """Keeping all tokens changes no bit, with AnchorCover at every layer and with the plans' own strategies."""
        stages = [Stage(f"all {layer}", layer, AnchorCover(), 1.0) for layer in range(1, len(self.layers))]
        if len(plans) == 1 and plans[0].stages:  # one that somebody asked for
            stages = [whole(stage) for stage in plans[0].stages]
        plan = Plan(tuple(stages))
        forward = self.model(**self.inputs).logits
        with accelerate(self.model, plan):
            mine = self.model(**self.inputs).logits
            logits, chosen = greedy(self.model, self.inputs)
        generated = gap(logits, untouched) if torch.equal(chosen, tokens) else 1.0
        return [
            Check(f"keep all, forward, {self.name}", gap(mine, forward), 0.0),
            Check(f"keep all, generate, {self.name}", generated, 0.0),
        ]

    def surgery(self, name: str, plan: Plan, untouched: Tensor, tolerance: float) -> Check:
        """A plan against the full-length computation with the same tokens, led along the same text."""
        with ExitStack() as stack:
            seen = stack.enter_context(watched(self.layers, self.visual.shape))
            run = stack.enter_context(accelerate(self.model, plan))
            packed = stack.enter_context(received(self.layers))  # behind the engine's hooks, as it came last
            logits, tokens = greedy(self.model, self.inputs)
        if run.last is None:
            return Check(f"{name}, {self.name}", 1.0, tolerance)
        kept = [stage.to(self.visual.device) for stage in run.last.kept]
        self.note_selection(plan, kept, seen)
        text = self.inputs["attention_mask"].bool() & ~self.visual
        lost = losses(plan, self.visual, kept, text, packed)
        slow = full_length(self.model, self.layers, self.inputs, tokens, lost)
        effect = gap(untouched[:, 0], slow[:, 0])
        return Check(f"{name}, {self.name}", gap(logits, slow), tolerance, effect)

    def note_selection(self, plan: Plan, kept: Sequence[Tensor], seen: Seen) -> None:
        left = self.visual
        for stage, stays in zip(plan.stages, kept, strict=True):
            for row in range(len(left)):
                if isinstance(stage.strategy, AnchorCover | LastTokenAttention) and bool(left[row].any()):
                    self.misses.setdefault(rule(stage), []).append(self.missed(stage, row, left, stays, seen))
            left = stays

    def missed(self, stage: Stage, row: int, left: Tensor, stays: Tensor, seen: Seen) -> tuple[float, float]:
        candidates, reported = positions(left[row]), set(positions(stays[row]))
        wanted = choose(self.layers, seen, stage, row, int(self.visual[row].sum()), candidates, reported)
        wrong = len(wanted ^ reported) / (len(wanted) + len(reported))
        return wrong, 1 - len(wanted) / len(candidates)

    def selection(self, rule: str) -> Check:
        """All choices by one rule; in half precision some may hang on a rounding."""
        wrong, chance = (sum(column) / len(column) for column in zip(*self.misses[rule], strict=True))
        return Check(f"{rule}, {self.name}", wrong, VISIBLE * chance if self.half else 0.0, chance)


def gap(logits: Tensor, wanted: Tensor) -> float:
    """Largest difference as a share of the largest logit."""
    wanted = wanted.float()
    return float((logits.float() - wanted).abs().max() / wanted.abs().max())


def positions(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def whole(stage: Stage) -> Stage:
    """The same stage, keeping everything."""
    if isinstance(stage.strategy, KeepNone):
        return Stage(stage.name, max(stage.layer, 1), AnchorCover(), 1.0)
    return replace(stage, retention=1.0, tokens=None, least=None, then="drop")


def rule(stage: Stage) -> str:
    return "choice by attention" if isinstance(stage.strategy, LastTokenAttention) else "choice by anchors and cover"


__all__ = ["Check", "selfcheck"]
