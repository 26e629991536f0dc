"""What there is to choose from, as rows for people and programs: all methods, and strategies that are none."""

from __future__ import annotations

from typing import Any

from halfv_accel.methods import Facts, Method
from halfv_accel.plan import Plan
from halfv_accel.plan_text import describe_plan
from halfv_accel.published import METHODS
from halfv_accel.strategies import STRATEGIES, Adaptive, Merging, Needs, Strategy, needs_of

KNOWN_FAMILIES = "LLaVA, LLaVA-NeXT, Video-LLaVA, Qwen2-VL, Qwen2.5-VL, Qwen3-VL"
ANY_FAMILY = "all"  # also classes that have no adapter of their own


def catalogue(config: Any) -> list[dict[str, Any]]:
    """One row a method, and one for each registered strategy that no method is made of, with defaults for a model.

    Parameters
    ----------
    config : transformers config
    """
    facts = Facts.of(config)
    rows = [_method_row(method, facts) for method in METHODS.values()]
    used = {method.strategy for method in METHODS.values()}
    return rows + [_strategy_row(name) for name in STRATEGIES if name not in used and name not in METHODS]


def markdown(config: Any) -> str:
    """The same as the table of docs/methods.md."""
    lines = ["| method | acts | needs | default | source | where the default is from | what differs |", "|---|" * 1]
    lines[1] = "|---|---|---|---|---|---|---|"
    for row in catalogue(config):
        cells = (
            f"`{row['name']}` ({row['title']})",
            row["where"],
            ", ".join(row["needs"]) or "-",
            f"`{row['plan']}`" if row["plan"] else "-",
            row["source"],
            row["defaults"],
            row["departs"] or "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _method_row(method: Method, facts: Facts) -> dict[str, Any]:
    plan = Plan(method.stages(facts)) if method.steps else None
    row = _row(method.name, method.title, STRATEGIES.build(method.strategy, method.parameters))
    first = plan.stages[0].layer if plan is not None else 1
    return row | {
        "where": "before the language model" if first == 0 else "inside the language model",
        "needs": [*row["needs"], *(["calibration"] if method.calibrated else [])],
        "plan": "" if plan is None else describe_plan(plan),
        "source": method.source,
        "defaults": method.defaults,
        "departs": method.departs,
    }


def _strategy_row(name: str) -> dict[str, Any]:
    row = _row(name, name, STRATEGIES.resolve(name))
    return row | {"where": "any layer", "plan": "", "source": "-", "defaults": "-", "departs": ""}


def _row(name: str, title: str, strategy: Strategy) -> dict[str, Any]:
    needs = needs_of(strategy)
    hides = getattr(strategy, "separators", "score") == "last"
    known = bool(needs.vision or needs.structure or hides)
    does = [word for word, kind in (("merges", Merging), ("adaptive", Adaptive)) if isinstance(strategy, kind)]
    families = KNOWN_FAMILIES if known else ANY_FAMILY
    return {"name": name, "title": title, "needs": _words(needs), "does": does, "families": families}


def _words(needs: Needs) -> list[str]:
    """What a strategy asks for, for people."""
    said = {"attention": "vision attention", "keys": "vision keys", "features": "vision features"}
    found = list(dict.fromkeys(said[signal] for signal, _ in needs.vision))
    if needs.before:
        found.append("the layer before")
    if needs.prompt:
        found.append("the prompt")
    if needs.structure:
        found.append("picture structure")
    return found
