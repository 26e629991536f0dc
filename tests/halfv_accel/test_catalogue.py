"""What the list of methods says is what the methods are."""

from dataclasses import replace

import pytest
import torch

from halfv_accel.catalogue import BEGIN, END, catalogue, documented, main
from halfv_accel.methods import Facts
from halfv_accel.names import architecture
from halfv_accel.plan_text import describe_plan, parse_plan
from halfv_accel.published import METHODS
from halfv_accel.strategies import STRATEGIES, register
from tests.halfv_accel.strategies.views import random_view

CONFIGS = {name: architecture(name) for name in ("llava-1.5-7b", "qwen2.5-vl-7b")}


def other_text(view, seed):
    """The same visual tokens beside another prompt's text."""
    other, signals = random_view(seed=seed), dict(view.signals)
    for name in ("last", "text attention"):
        signals[name] = other.signals[name]
    for name in ("prompt", "keys"):
        signals[name] = (view.signals[name][0], other.signals[name][1])
    return replace(view, text_states=other.text_states, signals=signals)


def outcome(strategy, view):
    budget = view.present.sum(1) * 2 // 3
    kept = strategy.select(view, budget)
    states = strategy.merge(view, kept) if hasattr(strategy, "merge") else view.states
    return kept, states[kept]


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].steps])
def test_a_method_reads_the_text_if_another_text_changes_what_it_does(name):
    changes = False
    for stage in METHODS[name].stages(Facts(32)):
        view = random_view(seed=1)
        same = [outcome(stage.strategy, other_text(view, seed)) for seed in range(2, 6)]
        changes |= not all(torch.equal(a, b) for each in same[1:] for a, b in zip(each, same[0], strict=True))
    assert METHODS[name].reads_text == changes


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_default_of_a_row_is_the_plan_of_its_name(kind):
    for row in catalogue(CONFIGS[kind]):
        if row["plan"]:
            assert row["plan"] == describe_plan(parse_plan(row["name"], Facts.of(CONFIGS[kind])))


def test_every_strategy_is_in_some_row():
    names = {row["name"] for row in catalogue(CONFIGS["llava-1.5-7b"])}
    assert names == set(METHODS)
    made_of = {name for method in METHODS.values() for name in method.strategies}
    assert set(STRATEGIES) == made_of - {""}  # to shrink pictures is no strategy


def test_a_strategy_of_nobody_s_paper_has_a_row(monkeypatch):
    monkeypatch.setattr(STRATEGIES, "_classes", dict(STRATEGIES._classes))
    first = STRATEGIES.find("fastv")
    register("mine")(type("Mine", (first,), {"__module__": "theirs"}))
    (row,) = [row for row in catalogue(CONFIGS["llava-1.5-7b"]) if row["name"] == "mine"]
    assert (row["where"], row["source"]) == ("inside the language model", "Python module theirs")


def test_the_table_is_written_between_its_markers(tmp_path):
    page = tmp_path / "methods.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main(str(page))
    assert page.read_text() == f"before\n{BEGIN}\n{documented()}\n{END}\nafter\n"
    assert documented().count("\n") == len(METHODS) + 1
