"""The three commands do their job on both embedded models."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

import tiny_vlm
from halfv_accel import Profile
from halfv_accel.models import is_native
from halfv_accel.names import MODELS, Known
from halfv_accel.plan_text import describe_plan, parse_plan
from halfv_data import scenes


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "scene.png"
    next(iter(scenes(1, seed=3))).image.save(path)
    return path


def test_calibrate_writes_a_profile_that_says_where_it_comes_from(halfv, profile_path):
    profile = Profile.load(profile_path)
    assert profile.schema_version == "2.0"
    assert profile.model.id == "tiny-qwen2.5-vl"
    assert profile.model.architecture == "Qwen2_5_VLForConditionalGeneration"
    assert profile.calibration.samples == 4
    assert len(profile.evidence.layer_kl) == profile.model.num_layers
    assert {len(curve) for curve in profile.evidence.entropy.values()} == {profile.model.num_layers + 1}
    assert {"torch", "transformers"} <= set(profile.calibration.versions)
    native = "bfloat16" if is_native(torch.bfloat16) else "float32"
    assert (profile.calibration.dtype, profile.calibration.device) == (native, "cpu")


def test_calibration_is_repeatable(halfv, tmp_path, profile_path):
    assert halfv("calibrate", "--model", "tiny-qwen2.5-vl", "--samples", 4, "--out", "again.json").code == 0
    assert (tmp_path / "again.json").read_text() == profile_path.read_text()


def test_an_interrupted_calibration_says_how_to_go_on_and_goes_on(halfv, tmp_path, profile_path, monkeypatch):
    arguments = ("calibrate", "--model", "tiny-qwen2.5-vl", "--samples", 4)
    with monkeypatch.context() as patched:
        patched.setattr("halfv_probe.calibration.measurements.Measurements.replies", interrupt)
        result = halfv(*arguments)
    assert result.code == 130
    assert "profile.json.journal" in result.err and "--resume" in result.err
    assert not (tmp_path / "profile.json").exists()
    assert halfv(*arguments, "--resume").code == 0
    assert (tmp_path / "profile.json").read_text() == profile_path.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def interrupt(_measurements):
    raise KeyboardInterrupt


def test_another_goal_uses_again_what_was_measured(halfv, tmp_path):
    arguments = ("calibrate", "--model", "tiny-llava", "--samples", 2)
    result = halfv(*arguments, "--target-flops", 0.05)
    assert result.code == 1
    said = [line for line in result.said.splitlines() if " samples, " not in line]  # but for a line a step
    assert len(said) == 1 and "no plan needs only 5%" in said[0]
    assert halfv(*arguments, "--target-flops", 0.5, "--resume").code == 0
    assert Profile.load(tmp_path / "profile.json").evidence.flops <= 0.5
    other = halfv("calibrate", "--model", "tiny-llava", "--samples", 3, "--resume")
    assert other.code == 0  # nothing left to go on with: a calibration from the start


def test_calibrate_takes_a_checkpoint_folder_and_prints_its_choices(halfv, tmp_path):
    folder = tiny_vlm.checkpoint("tiny-llava")
    result = halfv("calibrate", "--model", folder, "--samples", 2, "--fidelity", "reference")
    assert result.code == 0, result.err
    assert "IVR layer" in result.out and "SSR mode" in result.out
    profile = Profile.load(tmp_path / "profile.json")
    assert (profile.model.architecture, profile.calibration.fidelity) == ("LlavaForConditionalGeneration", "reference")


def test_plot_entropy_draws_a_picture(halfv, tmp_path, profile_path):
    (tmp_path / "profile.json").write_text(profile_path.read_text())
    result = halfv("plot-entropy")  # reads ./profile.json when nothing is given
    assert result.code == 0, result.err
    assert (tmp_path / "entropy.png").read_bytes().startswith(b"\x89PNG")
    assert halfv("plot-entropy", "--out", "entropy.svg").code == 0
    assert b"<svg" in (tmp_path / "entropy.svg").read_bytes()


def test_run_without_a_picture_asks_a_shipped_question_and_says_so(halfv, profile_path):
    result = halfv("run", "--profile", profile_path)
    assert result.code == 0, result.err
    assert "shipped question" in result.out and "--image picture.png" in result.out
    assert "144 visual tokens" in result.out and "FLOPs" in result.out


def test_run_answers_about_a_given_picture_and_compares(halfv, profile_path, picture):
    result = halfv(
        "run", "--profile", profile_path, "--image", picture, "--prompt", "Is there a red star?", "--compare"
    )
    assert result.code == 0, result.err
    assert "interleaved" in result.out and "shipped" not in result.out


def test_run_prints_one_json_object(halfv, profile_path, picture):
    arguments = ("--image", picture, "--image", picture, "--prompt", "Is there a red star?", "--max-new-tokens", 2)
    result = halfv("run", "--profile", profile_path, *arguments, "--json", "--compare")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    assert (answer["model"], answer["shipped_question"]) == ("tiny-qwen2.5-vl", False)
    assert answer["profile"] == str(profile_path)
    assert answer["plan"] == describe_plan(Profile.load(profile_path).plan())
    assert answer["images"] == [str(picture), str(picture)]
    assert answer["visual_tokens"] == 288
    assert answer["stages"][0]["after"] < 288
    assert 0 < answer["flops_ratio"] < 1
    assert answer["untouched"]["seconds"] > 0


def test_run_takes_a_plan_in_words_instead_of_a_profile(halfv, picture):
    arguments = ("--model", "tiny-llava", "--plan", "ivr:2:0.25,freeze:5")
    result = halfv("run", *arguments)
    assert result.code == 0, result.err
    assert "144 visual tokens -> 36 kept from layer 2 (ivr) -> frozen from layer 5 (ssr)" in result.out
    assert 'halfv run --model tiny-llava --plan ivr:2:0.25,freeze:5 --image picture.png --prompt "..."' in result.out
    result = halfv("run", *arguments, "--image", picture, "--prompt", "Is there a red star?", "--json")
    answer = json.loads(result.out)
    assert (answer["model"], answer["profile"], answer["plan"]) == ("tiny-llava", None, "ivr:2:0.25:0.1,freeze:5")
    assert [stage["after"] for stage in answer["stages"]] == [36, 0]


def test_run_takes_the_paper_s_plan_by_name(halfv, monkeypatch):
    config = tiny_vlm.load("tiny-llava")[0].config
    row = Known(config=lambda: config, paper=parse_plan("ivr:3:0.5:0.2,freeze:5"))
    monkeypatch.setitem(MODELS, "as-if-in-the-paper", row)
    result = halfv("run", "--model", tiny_vlm.checkpoint("tiny-llava"), "--plan", "paper", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["plan"] == "ivr:3:0.5:0.2,freeze:5"


def test_what_looks_like_markup_is_printed_as_it_is(halfv, tmp_path, profile_path):
    (tmp_path / "[b]").mkdir()
    (tmp_path / "[b]" / "[red]$x_{.json").write_text(profile_path.read_text())
    result = halfv("run", "--profile", "[b]/[red]$x_{.json")
    assert result.code == 0, result.err
    assert "halfv run --profile [b]/[red]$x_{.json" in result.out
    data = json.loads(profile_path.read_text())
    data["model"]["id"] = "[red]$x_{"
    (tmp_path / "profile.json").write_text(json.dumps(data))
    assert halfv("plot-entropy").code == 0


def test_a_checkpoint_folder_is_remembered_by_its_absolute_path(halfv, tmp_path):
    shutil.copytree(tiny_vlm.checkpoint("tiny-llava"), tmp_path / "tiny-mine")
    assert halfv("calibrate", "--model", "tiny-mine", "--samples", 1).code == 0
    assert Profile.load(tmp_path / "profile.json").model.id == str(tmp_path / "tiny-mine")


def test_help_needs_none_of_the_slow_packages():
    slow = ("torch", "transformers", "numpy", "matplotlib", "pandas", "datasets", "pydantic", "rich")
    code = f"import sys, halfv_cli.main; print([name for name in {slow} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("command", [[], ["calibrate"], ["plot-entropy"], ["report"], ["run"]])
def test_every_command_explains_itself(halfv, command):
    result = halfv(*command, "--help")
    assert result.code == 0
    assert "Usage: halfv" in result.out


def test_versionless_call_shows_help(halfv):
    result = halfv()
    assert "Usage: halfv" in result.out + result.err
