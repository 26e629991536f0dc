"""A plan in words, for the command line and for reports: ``ivr:2:0.25:0.1,sparse:21:0.05``.

Stages are separated by commas, and each is ``what:layer[:retention[:anchor_ratio]]``: ``ivr`` (AnchorCover), ``sparse``
(by attention of the last token), ``freeze``, or the name of a registered strategy; all but ``freeze`` drop the others.
Behind ``ivr`` and ``sparse`` the word ``:own`` takes the attention of the stage's own layer, not of the one before.

>>> describe_plan(parse_plan("ivr:3:0.5:0.2,freeze:15"))
'ivr:3:0.5:0.2,freeze:15'
"""

from __future__ import annotations

from halfv_accel.errors import HalfVError
from halfv_accel.plan import Plan, Stage
from halfv_accel.strategies import STRATEGIES, AnchorCover, KeepNone, LastTokenAttention, ScoredBy

EXAMPLE = "ivr:2:0.25,sparse:21:0.05"


def parse_plan(text: str) -> Plan:
    """The plan that a text asks for.

    Raises
    ------
    HalfVError
        Naming the part that makes no sense.
    """
    return Plan(tuple(_stage(part.strip()) for part in text.split(",")))


def describe_plan(plan: Plan | None) -> str:
    """A plan as `parse_plan` reads it; a stage that it cannot express is given with its strategy's parameters."""
    if plan is None:
        return "untouched"
    least = f" from {plan.min_visual_tokens} visual tokens on" if plan.min_visual_tokens else ""
    fidelity = "" if plan.fidelity == "paper" else f" ({plan.fidelity})"
    return ",".join(_words(stage) for stage in plan.stages) + least + fidelity


def _stage(part: str) -> Stage:
    what, *rest = part.split(":")
    own = what in ("ivr", "sparse") and rest[-1:] == ["own"]
    scored_by: ScoredBy = "own" if own else "previous"
    rest = rest[:-1] if own else rest
    numbers = [_number(part, value) for value in rest]
    if what not in ("ivr", "sparse", "freeze", *STRATEGIES):
        names = ", ".join(("ivr", "sparse", "freeze", *STRATEGIES))
        raise HalfVError(f"plan part '{part}' starts with '{what}': choose one of {names}, for example {EXAMPLE}")
    none = what in ("freeze", "keep_none")
    least, most = (1, 1) if none else (2, 3 if what == "ivr" else 2)
    if not least <= len(numbers) <= most:
        form = ":".join(["layer", "retention", "anchor_ratio"][:most])
        raise HalfVError(f"plan part '{part}' has {len(numbers)} numbers: write {what}:{form}, for example {EXAMPLE}")
    if numbers[0] != int(numbers[0]):
        raise HalfVError(f"plan part '{part}' has layer {rest[0]}: give a whole number of at least 1")
    layer = int(numbers[0])
    if none:
        return Stage(
            "ssr" if what == "freeze" else what, layer, KeepNone(), 0.0, "freeze" if what == "freeze" else "drop"
        )
    if what == "ivr":
        return Stage(
            "ivr", layer, AnchorCover(numbers[2] if numbers[2:] else AnchorCover.anchor_ratio, scored_by), numbers[1]
        )
    if what == "sparse":
        return Stage("ssr", layer, LastTokenAttention(scored_by=scored_by), numbers[1])
    return Stage(what, layer, STRATEGIES.resolve(what), numbers[1])


def _number(part: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if number - number != 0:  # not finite
        raise HalfVError(f"plan part '{part}' has {text!r} where a number belongs: write it like {EXAMPLE}")
    return number


def _words(stage: Stage) -> str:
    strategy, layer = stage.strategy, stage.layer
    share = f"{layer}:{stage.retention:g}"
    name = next((name for name in STRATEGIES if STRATEGIES.resolve(name) == strategy), str(strategy))
    if isinstance(strategy, KeepNone):
        return f"{'freeze' if stage.then == 'freeze' else name}:{layer}"
    if stage.then == "freeze":
        return f"freeze but {name}:{share}"
    if isinstance(strategy, AnchorCover):
        return f"ivr:{share}:{strategy.anchor_ratio:g}{_own(strategy)}"
    if isinstance(strategy, LastTokenAttention) and strategy.rotary:
        return f"sparse:{share}{_own(strategy)}"
    return f"{name}:{share}"


def _own(strategy: AnchorCover | LastTokenAttention) -> str:
    return ":own" if strategy.scored_by == "own" else ""
