"""README is a test: its commands and its Python run here, in order, in one folder."""

import json
import re

import pytest

from halfv_accel import plan_document, profile
from halfv_accel.bench import targets
from halfv_accel.names import ALIASES, MODELS
from halfv_accel.profile import Profile
from halfv_data import scenes
from tests.pages import ROOT, blocks, run_block
from tiny_vlm import NAMES
from tiny_vlm.evaluate import Scores, table

README = (ROOT / "README.md").read_text()
BLOCKS = blocks(README)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where README's reader stands: a folder with the pictures that its commands name."""
    folder = tmp_path_factory.mktemp("readme")
    drawn = list(scenes(2, seed=1))
    for name, sample in zip(("picture.png", "other.png"), drawn, strict=True):
        sample.image.save(folder / name)
    (folder / "pictures").mkdir()
    for index, sample in enumerate(drawn):
        sample.image.save(folder / "pictures" / f"{index}.png")
        (folder / "pictures" / f"{index}.txt").write_text(f"{sample.question}\n{sample.answer}\n")
    return folder


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_block(index, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run_block(*BLOCKS[index], capsys)


def test_every_name_of_a_model_is_listed():
    listed = README.split("Every command takes the same names: ", 1)[1].split("`--plan paper`", 1)[0]
    assert set(re.findall(r"`([^`]+)`", listed)) == {*MODELS, *ALIASES, *NAMES}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(("name", "document"), [("profile", profile), ("plan", plan_document)])
def test_exported_schemas_are_the_documents_own(name, document):
    exported = json.loads((ROOT / "docs" / f"{name}.schema.json").read_text())
    assert exported == document.json_schema(), "write it anew: make schema"


def test_the_table_of_speed_is_that_of_the_reports():
    assert targets.table(ROOT / "reports" / "bench") in README, "paste what halfv_accel.bench.targets prints"


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_tables_are_those_of_the_reports(name):
    report = json.loads((ROOT / "reports" / "tiny_vlm" / name / "accuracy.json").read_text())
    results = {condition: Scores(**scores) for condition, scores in report["results"].items()}
    assert table(results) in README, f"paste the table that `make accuracy` prints for {name}"


@pytest.mark.parametrize("name", NAMES)
def test_the_plans_that_were_measured_are_those_of_the_profiles(name):
    profile = Profile.load(ROOT / "reports" / "tiny_vlm" / name / "profile.json")
    ivr, ssr, layers = profile.ivr, profile.ssr, profile.model.num_layers
    then = "frozen" if ssr.mode == "freeze" else f"{ssr.retention:.0%}"
    tokens = (
        f"{ivr.retention:.0%} of the visual tokens from layer {ivr.layer}, {then} from layer {ssr.layer} of {layers}"
    )
    flops = f"{profile.evidence.flops:.0%} of the decoder's prefill FLOPs"
    assert f"**{name}**: {tokens}; {flops}".replace("%", " %") in README
