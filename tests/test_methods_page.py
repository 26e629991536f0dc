"""docs/methods.md is a test: its table is the code's, its plans are read, its commands and its Python run."""

import json
import re

import pytest

from halfv_accel.catalogue import BEGIN, END, documented
from halfv_accel.methods import Facts
from halfv_accel.plan_document import PlanDocument, StageDocument
from halfv_accel.plan_text import describe_plan, parse_plan
from halfv_accel.published import METHODS
from tests.pages import ROOT, blocks, run_block

PAGE = (ROOT / "docs" / "methods.md").read_text()
TABLE = PAGE.split(BEGIN)[1].split(END)[0]
WORDS = re.findall(r"^\| `([^`]+)` \|", PAGE.replace(TABLE, ""), flags=re.M)
PLANS = [words for words in WORDS if words not in {**PlanDocument.model_fields, **StageDocument.model_fields}]


def test_the_table_is_the_code_s():
    assert TABLE.strip() == documented(), "write it anew: make methods"


@pytest.mark.parametrize("words", PLANS)
def test_a_plan_in_words_is_read(words):
    plan = parse_plan(words, Facts(32, "llava"))
    plan.check_depth(32)
    assert describe_plan(parse_plan(describe_plan(plan))) == describe_plan(plan)


def test_there_are_plans_in_words():
    assert len(PLANS) > 12


def test_the_complete_plan_json_is_complete(tmp_path):
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.S)
    (tmp_path / "plan.json").write_text(text)
    plan = PlanDocument.load(tmp_path / "plan.json").plan()
    assert (plan.stages[0].least, plan.stages[1].tokens, plan.stages[1].then, plan.skip) == (0.05, 32, "freeze", (4, 5))
    raw = json.loads(text)
    told = set(re.findall(r"`([a-z_]+)`", PAGE.split("| field |")[1].split("**A profile**")[0]))
    document = json.loads((ROOT / "docs" / "plan.schema.json").read_text())
    fields = {*document["properties"], *document["$defs"]["StageDocument"]["properties"]} - {"stages"}
    assert {*raw, *raw["stages"][0], *raw["stages"][1]} - {"stages"} == fields and fields <= told


def test_it_says_of_every_published_method_where_its_formula_comes_from():
    said = PAGE.split("## Where the formulas come from")[1].split("## What shows it")[0]
    assert [
        method.title for method in METHODS.values() if method.source != "control" and method.title not in said
    ] == []


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("index", range(len(blocks(PAGE))))
def test_block(index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_block(*blocks(PAGE)[index], capsys)
