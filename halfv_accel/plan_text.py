"""A plan in words, for the command line and for reports: ``ivr:2:0.25,sparse:21:0.05``, ``visionzip::64``, ``pdrop``.

Parts are separated by commas, and each is ``what[:layer[:budget[:option...]]]``.

- ``downsample::0.25`` or ``downsample::64``, first of all, shrinks the pictures before anything else; it has no layer.
- *what* is ``ivr`` (AnchorCover), ``sparse`` (by attention of the last token), ``freeze``, ``skip``, a method of
  `halfv_accel.methods`, or a registered strategy. A part that says nothing more, or leaves out layer or budget, takes
  the method's defaults, which depend on the model.
- *layer* is the decoder layer whose input the stage acts on, 0 for before the language model. ``skip`` takes several:
  ``skip:3+7+20-25``.
- *budget* is a share of the visual tokens (``0.25``, ``1/3``; ``1`` is all), a number of tokens above 1 (``64``), or
  two shares for a strategy that decides itself how many stay (``0.1-0.5``).
- *options* are the strategy's parameters (``alpha=0.5``); a bare number is ``ivr``'s anchor ratio, and ``own`` is
  ``scored_by=own``.

>>> describe_plan(parse_plan("ivr:3:0.5:0.2,freeze:15"))
'ivr:3:0.5:0.2,freeze:15'
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from fractions import Fraction
from typing import Any

from halfv_accel.downsample import Downsample
from halfv_accel.errors import HalfVError
from halfv_accel.methods import Facts, Method
from halfv_accel.plan import Plan, Stage, Then
from halfv_accel.published import METHODS
from halfv_accel.strategies import STRATEGIES, AnchorCover, KeepNone, LastTokenAttention

EXAMPLE = "ivr:2:0.25,sparse:21:0.05"
ALIASES = {"ivr": "anchor_cover", "sparse": "last_token_attention", "freeze": "keep_none"}
MOST_PARTS = 10_000  # of a share that is written as a fraction
DOWNSAMPLE = "downsample"
NAMES = {"ivr": "ivr", "sparse": "ssr", "freeze": "ssr"}  # of the stages
STRATEGIES.reserve({*ALIASES, *METHODS, "skip"})


def parse_plan(text: str, facts: Facts | None = None) -> Plan:
    """The plan that a text asks for.

    Parameters
    ----------
    facts : Facts, optional
        Of the model; needed where the text leaves a layer or a budget to the method's defaults.

    Raises
    ------
    HalfVError
        Naming the part that makes no sense.
    """
    stages: list[Stage] = []
    skip: set[int] = set()
    shrink: Downsample | None = None
    for number, part in enumerate(part.strip() for part in text.split(",")):
        what, *rest = part.split(":")
        if what == DOWNSAMPLE:
            shrink = _downsample(part, rest, number)
        elif what == "skip":
            skip.update(_layers(part, rest))
        else:
            stages += _stages(part, what, rest, facts)
    return Plan(tuple(stages), skip=tuple(skip), downsample=shrink)


def describe_plan(plan: Plan | None) -> str:
    """A plan as `parse_plan` reads it; a stage that it cannot express is given with its strategy's parameters."""
    if plan is None:
        return "untouched"
    least = f" from {plan.min_visual_tokens} visual tokens on" if plan.min_visual_tokens else ""
    fidelity = "" if plan.fidelity == "paper" else f" ({plan.fidelity})"
    parts = [] if plan.downsample is None else [f"{DOWNSAMPLE}::{_share(plan.downsample)}"]
    parts += [_words(stage) for stage in plan.stages]
    if plan.skip:
        parts.append("skip:" + "+".join(str(layer) for layer in plan.skip))
    return ",".join(parts) + least + fidelity


def _stages(part: str, what: str, rest: list[str], facts: Facts | None) -> list[Stage]:
    method = METHODS.get(what)
    if what not in ALIASES and method is None and what not in STRATEGIES:
        close = difflib.get_close_matches(what, (*ALIASES, "skip", *METHODS, *STRATEGIES), n=1)
        guess = f"did you mean {close[0]}? Else " if close else ""
        raise HalfVError(
            f"plan part '{part[:60]}' starts with '{what[:60]}': {guess}choose ivr, sparse, freeze, skip or a method "
            f"that `halfv methods` lists, for example {EXAMPLE}, or install "
            "the package that brings it"
        )
    if method is not None and not method.steps:
        raise HalfVError(f"which layers {method.title} skips has to be measured on the model: write skip:3+4+9, say")
    if method is not None and not any(rest):
        return list(method.stages(_known(part, facts)))
    name = ALIASES.get(what) or (method.strategy if method is not None else what)
    none = name == "keep_none"
    layer, budget, options = rest[0] if rest else "", rest[1] if rest[1:] and not none else "", rest[1 if none else 2 :]
    _check_form(part, what, method, layer, budget, options, none)
    stage: dict[str, Any] = {"retention": 0.0} if none else {}
    if method is not None and not (layer and (budget or none)):
        default, *others = method.stages(_known(part, facts))
        if others:  # one of several stages, and nothing says which
            raise HalfVError(
                f"plan part '{part}' is one stage, and {method.title} has {1 + len(others)}: write {what} alone for "
                f"all of them, or {what}:layer:retention for one"
            )
        stage.update(layer=default.layer, retention=default.retention)
    if layer:
        stage["layer"] = _whole(part, layer)
    if budget:
        stage.update({"retention": 1.0}, **_budget(part, budget))
    parameters = dict(method.parameters) if method is not None else {}
    parameters.update(_options(part, what, options))
    then: Then = "freeze" if what == "freeze" else "drop"
    return [Stage(NAMES.get(what, what), strategy=STRATEGIES.build(name, parameters), then=then, **stage)]


def _check_form(
    part: str, what: str, method: Method | None, layer: str, budget: str, options: list[str], none: bool
) -> None:
    """Is there all that a part needs, and nothing more?"""
    numbers = sum(1 for value in (layer, budget, *options) if value and "=" not in value and value != "own")
    needed = 0 if method is not None else 1 if none else 2
    most = 1 if none else 3 if what == "ivr" else 2
    if numbers < needed or numbers > most or (method is None and not (layer and (none or budget))):
        form = ":".join(["layer", "retention", "anchor_ratio"][:most])
        raise HalfVError(f"plan part '{part}' has {numbers} numbers: write {what}:{form}, for example {EXAMPLE}")


def _downsample(part: str, rest: list[str], number: int) -> Downsample:
    if number:
        raise HalfVError(f"plan part '{part}' shrinks the pictures before anything else: write it first, and once")
    layer, *budget = rest or [""]
    if layer or len(budget) > 1:
        raise HalfVError(f"plan part '{part}' acts on pictures and has no layer or option: write {DOWNSAMPLE}::0.25")
    if not any(budget):
        return METHODS[DOWNSAMPLE].downsample or Downsample()
    found = _budget(part, budget[0])
    if "least" in found:
        raise HalfVError(f"plan part '{part}' has bounds, but pictures have one size: write {DOWNSAMPLE}::0.25")
    return Downsample(**found)


def _budget(part: str, text: str) -> dict[str, Any]:
    least, dash, most = text.rpartition("-")
    if dash and least and not least.endswith("e"):
        return {"least": _number(part, least), "retention": _number(part, most)}
    number = _number(part, text)
    return {"tokens": int(number)} if number > 1 and number == int(number) else {"retention": number}


def _options(part: str, what: str, options: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if equals:
            found[key] = _value(value)
        elif option == "own":
            found["scored_by"] = "own"
        elif what == "ivr":
            found["anchor_ratio"] = _number(part, option)
        else:
            raise HalfVError(f"plan part '{part}' has '{option}': write name=value, for example {EXAMPLE}")
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _layers(part: str, rest: list[str]) -> list[int]:
    found: list[int] = []
    for piece in rest[0].split("+") if len(rest) == 1 else [""]:
        first, dash, last = piece.partition("-")
        start = _whole(part, first)
        end = _whole(part, last) if dash else start
        if end < start:
            raise HalfVError(f"plan part '{part}' has layers from {start} to {end}: write the lower one first")
        found += range(start, end + 1)
    return found


def _known(part: str, facts: Facts | None) -> Facts:
    if facts is None:
        raise HalfVError(f"plan part '{part}' leaves layers or budgets to the model's size: write them out")
    return facts


def _whole(part: str, text: str) -> int:
    number = _number(part, text)
    if number != int(number):
        raise HalfVError(f"plan part '{part}' has layer {text}: give a whole number")
    return int(number)


def _number(part: str, text: str) -> float:
    try:
        number = float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        number = float("nan")
    if number - number != 0:  # not finite
        raise HalfVError(f"plan part '{part}' has {text!r} where a number belongs: write it like {EXAMPLE}")
    return number


def _words(stage: Stage) -> str:
    strategy, layer = stage.strategy, stage.layer
    name = STRATEGIES.name_of(strategy)
    if name is None:
        return f"{'freeze but ' if stage.then == 'freeze' else ''}{strategy}:{layer}:{_share(stage)}"
    if isinstance(strategy, KeepNone):
        return f"{'freeze' if stage.then == 'freeze' else name}:{layer}"
    options = [f"{key}={value}" for key, value in _changed(strategy).items()]
    if isinstance(strategy, AnchorCover):
        name, options = "ivr", [_digits(strategy.anchor_ratio), *_own(strategy)]
    elif isinstance(strategy, LastTokenAttention) and strategy.rotary:
        name, options = "sparse", _own(strategy)
    words = ":".join([name, str(layer), _share(stage), *options])
    return f"freeze but {words}" if stage.then == "freeze" else words


def _share(budget: Stage | Downsample) -> str:
    if budget.tokens is not None:
        return str(budget.tokens) if budget.tokens > 1 else "one token"  # 1 would read as all of them
    least = getattr(budget, "least", None)
    return _digits(budget.retention) if least is None else f"{_digits(least)}-{_digits(budget.retention)}"


def _digits(share: float) -> str:
    """A share that reads back as it was, as short as it can be: 0.25, 1/3."""
    nearest = Fraction(share).limit_denominator(MOST_PARTS)
    short = f"{share:g}"
    if float(short) == share and "e" not in short:
        return short
    return str(nearest) if float(nearest) == share else repr(share)


def _changed(strategy: Any) -> dict[str, Any]:
    """Parameters that are not at their defaults."""
    values = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}
    return {name: value for name, value in values.items() if value != getattr(type(strategy)(), name)}


def _own(strategy: AnchorCover | LastTokenAttention) -> list[str]:
    return ["own"] if strategy.scored_by == "own" else []
