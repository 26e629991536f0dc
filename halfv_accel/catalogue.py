"""What there is to choose from, as rows for people and programs: all methods, and strategies that are none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfv_accel.downsample import FAMILIES as SHRINKING_FAMILIES
from halfv_accel.downsample import MODEL_TYPES as SHRINKING_TYPES
from halfv_accel.methods import Facts, Method
from halfv_accel.names import architecture
from halfv_accel.plan import Plan
from halfv_accel.plan_text import describe_plan
from halfv_accel.published import METHODS
from halfv_accel.strategies import STRATEGIES, Adaptive, Merging, Needs, Strategy, hides_separators, needs_of

KNOWN_FAMILIES = "LLaVA, LLaVA-NeXT, Video-LLaVA, Qwen2-VL, Qwen2.5-VL, Qwen3-VL"
ANY_FAMILY = "all"  # also classes that have no adapter of their own
BEGIN, END = "<!-- make methods -->", "<!-- end -->"  # around the table


def catalogue(config: Any) -> list[dict[str, Any]]:
    """One row a method, and one for each registered strategy that no method is made of, with defaults for a model.

    Parameters
    ----------
    config : transformers config
    """
    facts = Facts.of(config)
    rows = [_method_row(method, facts) for method in METHODS.values()]
    used = {name for method in METHODS.values() for name in method.strategies}
    return rows + [_strategy_row(name) for name in STRATEGIES if name not in used and name not in METHODS]


def markdown(configs: Mapping[str, Any]) -> str:
    """The same as the table of docs/methods.md, with a column of defaults for each model.

    Parameters
    ----------
    configs : mapping
        By the title of the column.
    """
    titles = ["method, source", "acts", "needs", *configs, "where the default is from", "what differs"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for rows in zip(*map(catalogue, configs.values()), strict=True):
        row, plans = rows[0], [f"`{each['plan']}`" if each["plan"] else "-" for each in rows]
        name, known = f"`{row['name']}`: {row['title']}<br>{row['source']}", row["families"] != ANY_FAMILY
        needs = ", ".join([*row["needs"], *(["a known family"] if known else [])]) or "-"
        cells = (name, ", ".join([row["where"], *row["does"]]), needs, *plans, row["defaults"], row["departs"] or "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def documented() -> str:
    """The table as docs/methods.md has it between its markers."""
    return markdown({f"default, {name}": architecture(name) for name in ("llava-1.5-7b", "qwen2.5-vl-7b")})


def main(path: str) -> None:
    """Write the table anew: `python -m halfv_accel.catalogue docs/methods.md`."""
    page = Path(path)
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{documented()}\n{END}{tail}", encoding="utf-8")


def _method_row(method: Method, facts: Facts) -> dict[str, Any]:
    if method.downsample is not None:
        return _downsample_row(method, facts)
    plan = Plan(method.stages(facts)) if method.steps else None
    row = _row(method.name, method.title, STRATEGIES.build(method.strategy, method.parameters))
    places = dict.fromkeys("inside" if stage.layer else "before" for stage in plan.stages) if plan else ["inside"]
    return row | {
        "where": f"{' and '.join(places)} the language model",
        "needs": [
            *row["needs"],
            *(["the prompt's text"] if method.reads_text else []),
            *(["calibration"] if method.calibrated else []),
        ],
        "plan": "" if plan is None else describe_plan(plan),
        "source": method.source,
        "defaults": method.defaults,
        "departs": method.departs,
    }


def _downsample_row(method: Method, facts: Facts) -> dict[str, Any]:
    """The pictures are shrunk, and nothing is chosen."""
    shrinks = facts.model_type in SHRINKING_TYPES
    return {
        "name": method.name,
        "title": method.title,
        "needs": ["a grid that follows from the picture's size"],
        "does": [],
        "families": SHRINKING_FAMILIES,
        "where": "the picture",
        "plan": describe_plan(Plan((), downsample=method.downsample)) if shrinks else "",
        "source": method.source,
        "defaults": method.defaults,
        "departs": method.departs,
    }


def _strategy_row(name: str) -> dict[str, Any]:
    strategy = STRATEGIES.resolve(name)
    where = "inside the language model" if needs_of(strategy).before else "any layer"
    source = f"Python module {type(strategy).__module__}"  # of another package, or of the user
    row = _row(name, name, strategy)
    return row | {"where": where, "plan": "", "source": source, "defaults": "-", "departs": ""}


def _row(name: str, title: str, strategy: Strategy) -> dict[str, Any]:
    needs = needs_of(strategy)
    known = bool(needs.vision or needs.structure or hides_separators(strategy))
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
        found.append("the prompt at layer 0")
    if needs.structure:
        found.append("picture structure")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
