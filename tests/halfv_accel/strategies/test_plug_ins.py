"""Strategies of other packages: really built, installed and found, in a process of their own."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from halfv_accel import HalfVError, Profile
from halfv_accel.plan_document import PlanDocument
from halfv_accel.plan_text import parse_plan
from halfv_accel.strategies import FastV, register
from halfv_accel.strategies.registry import StrategyRegistry
from tests.halfv_accel.refusing import refusal
from tests.plug_ins import halfv, install

ROOT = Path(__file__).parents[3]
GOOD = """
from dataclasses import dataclass
from typing import ClassVar

from halfv_accel.strategies import Needs
from halfv_accel.strategies.shared.ranking import top_k_mask


@dataclass(frozen=True)
class Theirs:
    sign: float = 1.0
    needs: ClassVar[Needs] = Needs()

    def select(self, view, budget):
        return top_k_mask(self.sign * view.states.float().norm(dim=-1), view.present, budget)
"""
BROKEN = "import a_module_that_nobody_has"
UNFIT = """
from dataclasses import dataclass

from halfv_accel.strategies import register


@register("unfit")
@dataclass(frozen=True)
class Unfit:
    def __post_init__(self):
        raise ValueError("no default suits")

    def select(self, view, budget): ...
"""
PACKAGES = {  # name: module's text, entry points
    "halfv-theirs": (GOOD, {"theirs": "Theirs"}),
    "halfv-broken": (BROKEN, {"broken": "Broken"}),
    "halfv-taken": (GOOD, {"fastv": "Theirs", "pdrop": "Theirs"}),
    "halfv-unfit": (UNFIT, {"unfit": "Unfit"}),
}
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.0"

[project.entry-points."halfv.strategies"]
{entries}

[tool.setuptools]
py-modules = ["{module}"]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the four packages, as pip installs them."""
    sources, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    for name, (text, entries) in PACKAGES.items():
        module, folder = name.replace("-", "_"), sources / name
        folder.mkdir()
        lines = "\n".join(f'{key} = "{module}:{value}"' for key, value in entries.items())
        (folder / "pyproject.toml").write_text(PROJECT.format(name=name, module=module, entries=lines))
        (folder / f"{module}.py").write_text(text)
    install(target, *(sources / name for name in PACKAGES))
    return target


@pytest.fixture(scope="module")
def theirs(installed):
    """`halfv` with these arguments, in a process that sees the packages."""
    return partial(halfv, installed)


@pytest.fixture
def plan_json(tmp_path):
    """A plan that names their strategy."""
    stages = [dict(name="mine", layer=1, strategy="theirs", parameters={"sign": -1.0}, retention=0.25)]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(dict(stages=stages)))
    return path


@pytest.fixture
def profile_json(tmp_path, plan_json):
    """A profile of tiny-llava whose plan names their strategy."""
    raw = json.loads((ROOT / "reports" / "tiny_vlm" / "tiny-llava" / "profile.json").read_text())
    raw = {key: value for key, value in raw.items() if key not in ("ivr", "ssr")}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(raw | {"schema_version": "2.0", "plan": json.loads(plan_json.read_text())}))
    return path


def test_the_good_one_is_listed_and_each_bad_one_is_named_once(theirs):
    code, printed, warned = theirs("methods", "--json")
    rows = {row["name"]: row for row in json.loads(printed)}
    assert code == 0 and rows["theirs"]["where"] == "any layer"
    assert "Chen" in rows["fastv"]["source"] and "Xing" in rows["pdrop"]["source"]  # HalfV's own win
    lines = warned.splitlines()
    for start, why in (
        ("halfv: strategy 'broken' of halfv-broken cannot be used (ModuleNotFoundError: ", "a_module_that_nobody_has"),
        ("halfv: strategy 'fastv' of halfv-taken cannot be used", "registered already"),
        ("halfv: strategy 'pdrop' of halfv-taken cannot be used", "means something else in a plan"),
        ("halfv: strategy 'unfit' of halfv-unfit cannot be used (ValueError: ", "no default suits"),
    ):
        (line,) = [line for line in lines if line.startswith(start)]
        assert why in line and line.endswith("update or remove that package; everything else works")
    assert len(lines) == 4 and {"broken", "unfit"}.isdisjoint(rows)


@pytest.mark.parametrize("way", ["words", "plan.json", "profile.json"])
def test_a_plan_of_theirs_runs(theirs, way, plan_json, profile_json):
    words = ("--model", "tiny-llava", "--plan")
    asked = {"words": (*words, "theirs:1:0.25:sign=-1.0"), "plan.json": (*words, plan_json)}
    code, printed, warned = theirs("run", "--json", *asked.get(way, ("--profile", profile_json)))
    answer = json.loads(printed)
    assert (code, answer["plan"]) == (0, "theirs:1:0.25:sign=-1.0"), warned
    (stage,) = answer["stages"]
    assert stage["after"] == answer["visual_tokens"] // 4


def test_without_the_package_it_is_refused_by_name_with_the_way_to_get_it(plan_json, profile_json):
    way = "'theirs'.*install the package that brings it"
    refusal(lambda: PlanDocument.load(plan_json).plan(), way)
    refusal(lambda: Profile.load(profile_json), way)
    refusal(lambda: parse_plan("theirs:1:0.5"), way)


@pytest.fixture
def entries(monkeypatch):
    """A registry of its own beside entry points that raise what they are told."""

    @dataclass
    class Entry:
        name: str
        error: BaseException
        dist = None

        def load(self):
            raise self.error

    def given(*errors):
        found = [Entry(f"theirs{number}", error) for number, error in enumerate(errors)]
        monkeypatch.setattr("halfv_accel.strategies.registry.entry_points", lambda group: found)
        return StrategyRegistry()

    return given


def test_whatever_an_import_raises_is_a_warning_and_an_interrupt_is_not(entries):
    registry = entries(RuntimeError("boom"), SystemExit(3))
    with pytest.warns(UserWarning, match="strategy 'theirs") as warned:
        assert list(registry) == []
    assert len(warned) == 2
    assert list(registry) == []  # and it is not looked for again
    with pytest.raises(KeyboardInterrupt):
        list(entries(KeyboardInterrupt()))


def test_a_plan_s_own_words_are_kept_free():
    for word in ("skip", "ivr", "paper", "pdrop"):
        with pytest.raises(HalfVError, match=f"'{word}' means something else in a plan"):
            register(word)(FastV)
