"""``halfv bench`` reports what it measured, writes it down, and refuses nonsense in one line. No time is judged."""

import json

import pytest

from halfv_accel import Profile
from halfv_accel.architectures import middling
from halfv_accel.bench.results import Reading
from halfv_accel.names import ALIASES, MODELS, Known, find
from halfv_accel.plan_text import parse_plan

from .test_bad_input import refused, snapshot

PLAN = "ivr:3:0.5:0.2,freeze:5"
SMALL = ("--plan", PLAN, "--visual-tokens", 144, "--text-tokens", 8, "--new-tokens", 2, "--repeats", 1)


@pytest.fixture
def miniature(monkeypatch):
    """A model of two layers under the name mini, as if the paper had run it."""
    monkeypatch.setitem(MODELS, "mini", Known(config=lambda: middling(64, 2, 4), paper=parse_plan("ivr:1:0.5")))


@pytest.fixture
def made_up(monkeypatch):
    """``made_up(cost)``: break-even sees v ms for the untouched model and cost + v / 2 for the plan."""

    def install(cost):
        def fake(model, prompt, plan, new_tokens):
            visual = float(prompt.visual[0])
            return Reading(1.0, visual if plan is None else cost + visual / 2, 1.0, None, 1.0, None, 1, 0.0)

        monkeypatch.setattr("halfv_accel.bench.break_even.measure", fake)

    return install


def test_a_table_and_all_figures_with_their_provenance(halfv, tmp_path):
    result = halfv("bench", "--model", "tiny-llava", *SMALL, "--batch", "1,2", "--chart", "bench.svg")
    assert result.code == 0, result.err
    for words in ("time to first token (ms)", "EFFICIENCY", "FastV-style", "random", "exact TFLOPs", "batch 2, 144"):
        assert words in result.out
    assert result.out.endswith("wrote bench.json and bench.svg\n")
    assert "?: too few rounds to conclude" in " ".join(result.out.split()) and "--repeats 20" in result.err
    document = json.loads((tmp_path / "bench.json").read_text())
    origin = document["provenance"]
    assert (origin["model"], origin["plan"], origin["repeats"], origin["batch"]) == ("tiny-llava", PLAN, 1, [1, 2])
    assert [found["visual_tokens"] for found in document["comparisons"]] == [[144], [144, 144]]
    assert [found["text_tokens"] for found in document["comparisons"]] == [[8], [8, 8]]
    names = [variant["name"] for variant in document["comparisons"][0]["variants"]]
    assert names == ["untouched", "accelerated", "with block", "keep all", "FastV-style", "random"]
    assert b"<svg" in (tmp_path / "bench.svg").read_bytes()


def test_another_number_than_asked_for_is_told(halfv, tmp_path):
    arguments = [word if word != 144 else 200 for word in SMALL]
    result = halfv("bench", "--model", "tiny-llava", *arguments, "--attention", "eager", "--batch", 2, "--ragged")
    assert result.code == 0, result.err
    assert "note: 144 visual tokens, the nearest to 200" in result.err
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["provenance"]["attention"] == "eager"
    assert document["provenance"]["asked_visual_tokens"] == 200


def test_random_weights_take_the_number_that_was_asked_for(halfv, tmp_path, miniature):
    arguments = ["--plan", "ivr:1:0.5", *SMALL[2:]]
    result = halfv("bench", "--model", "mini", "--random-weights", *arguments, "--out", "other.json", "--seed", 5)
    assert result.code == 0, result.err
    origin = json.loads((tmp_path / "other.json").read_text())["provenance"]
    assert (origin["random_weights"], origin["dtype"], origin["seed"]) == (True, "float32", 5)
    assert "144 visual" in result.out and "nearest" not in result.err


def test_a_profile_is_timed_as_it_stands(halfv, tmp_path, profile_path):
    profile = Profile.load(profile_path).model_copy(update={"min_visual_tokens": 5000})
    profile.save(tmp_path / "profile.json")
    result = halfv("bench", "--model", "tiny-qwen2.5-vl", "--profile", "profile.json", *SMALL[2:])
    assert result.code == 0, result.err
    assert "fewer than 5000 visual tokens alone" in result.err
    untouched, accelerated, *_ = json.loads((tmp_path / "bench.json").read_text())["comparisons"][0]["variants"]
    assert accelerated["flops"] == untouched["flops"]
    assert accelerated["quantities"]["cache_bytes"] == untouched["quantities"]["cache_bytes"]


def test_break_even_goes_into_the_profile(halfv, tmp_path, profile_path, made_up):
    made_up(cost=40)
    (tmp_path / "profile.json").write_text(profile_path.read_text())
    arguments = ("--profile", "profile.json", "--visual-tokens", 144, "--repeats", 6, "--break-even")
    result = halfv("bench", "--model", "tiny-qwen2.5-vl", *arguments)
    assert result.code == 0, result.err
    assert "pays off from 112 visual tokens on; wrote bench.json" in result.out and "warning" not in result.err
    assert (tmp_path / "profile.json").read_text() == profile_path.read_text()
    assert halfv("bench", "--model", "tiny-qwen2.5-vl", *arguments, "--write-profile").code == 0
    assert Profile.load(tmp_path / "profile.json").min_visual_tokens == 112
    found = json.loads((tmp_path / "bench.json").read_text())["break_even"]
    assert [size["visual_tokens"] for size in found["sizes"]] == [32, 48, 64, 112, 144]
    assert found["visual_tokens"] == 112


def test_without_a_break_even_the_profile_stays(halfv, tmp_path, profile_path, made_up):
    made_up(cost=1000)
    (tmp_path / "profile.json").write_text(profile_path.read_text())
    arguments = ("--profile", "profile.json", "--visual-tokens", 64, "--repeats", 6, "--break-even", "--write-profile")
    result = halfv("bench", "--model", "tiny-qwen2.5-vl", *arguments)
    assert result.code == 0
    assert "up to 64 visual tokens the plan does not pay off here" in result.out
    assert "stays as it is" in result.err
    assert (tmp_path / "profile.json").read_text() == profile_path.read_text()


def test_break_even_with_random_weights_tries_small_prompts(halfv, tmp_path, miniature, made_up):
    made_up(cost=0)
    arguments = ("--plan", "ivr:1:0.5", "--visual-tokens", 80, "--repeats", 6, "--break-even")
    result = halfv("bench", "--model", "mini", "--random-weights", *arguments)
    assert result.code == 0, result.err
    assert "pays off from 32 visual tokens on, the smallest number tried" in result.out
    sizes = json.loads((tmp_path / "bench.json").read_text())["break_even"]["sizes"]
    assert [size["visual_tokens"] for size in sizes] == [32, 48, 64, 80]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--plan", "melt:3"], "melt"),
        (["--plan", "ivr:99:0.5"], "99"),
        (["--plan", "paper"], "no plan for a llava with 10 layers of width 128, only for llava-1.5-7b"),
        ([], "--plan ivr:2:0.5"),
        (["--plan", PLAN, "--profile", "no.json"], "both --profile and --plan"),
        (["--profile", "no.json"], "no.json does not exist"),
        (["--plan", PLAN, "--batch", "1,zero"], "--batch is '1,zero'"),
        (["--plan", PLAN, "--batch", "0"], "--batch is '0'"),
        (["--plan", PLAN, "--batch", "1,2", "--break-even"], "one batch size"),
        (["--plan", PLAN, "--break-even", "--chart", "a.png"], "--chart"),
        (["--plan", PLAN, "--break-even", "--write-profile"], "--write-profile"),
        (["--plan", PLAN, "--break-even", "--ragged"], "leave --ragged out"),
        (["--plan", PLAN, "--repeats", "0"], "repeats"),
        (["--plan", PLAN, "--visual-tokens", "-5"], "visual-tokens"),
        (["--plan", PLAN, "--new-tokens", "1"], "new-tokens"),
        (["--plan", PLAN, "--attention", "psychic"], "psychic"),
        (["--plan", PLAN, "--device", "banana"], "banana"),
        (["--plan", PLAN, "--dtype", "int8"], "int8"),
        (["--plan", PLAN, "--chart", "bench.docx"], "docx"),
        (["--plan", PLAN, "--out", "no-such-folder/bench.json"], "no-such-folder"),
        (["--plan", PLAN, "--random-weights"], "no model 'tiny-llava' with random weights"),
    ],
)
def test_stupid_input(halfv, tmp_path, arguments, fragment):
    before = snapshot(tmp_path)
    refused(halfv("bench", "--model", "tiny-llava", *arguments), tmp_path, before, fragment)


def test_a_profile_of_another_build_is_refused(halfv, tmp_path, profile_path, miniature):
    before = snapshot(tmp_path)
    arguments = ("--model", "mini", "--random-weights", "--profile", profile_path)
    fragments = ("Qwen2_5_VLForConditionalGeneration", "LlavaForConditionalGeneration with 2 layers of width 64")
    refused(halfv("bench", *arguments), tmp_path, before, *fragments)


def test_the_paper_s_plan_is_timed_by_name(halfv, tmp_path, miniature):
    result = halfv("bench", "--model", "mini", "--random-weights", "--plan", "paper", *SMALL[2:])
    assert result.code == 0, result.err
    origin = json.loads((tmp_path / "bench.json").read_text())["provenance"]
    assert (origin["plan"], origin["plan_source"]) == ("ivr:1:0.5:0.1", "Table 9")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["qwen2-vl-7b", "--random-weights", "--plan", "paper"], "ivr:2:0.25:0.1,sparse:21:0.05, which is that of a"),
        (["mid", "--random-weights", "--plan", "paper"], "the paper has no plan for mid, only for llava-1.5-7b"),
        (["Qwen/Qwen3-VL-8B-Instruct", "--plan", "paper"], "the paper has no plan for Qwen/Qwen3-VL-8B-Instruct"),
        (["qwen2.5-vl-3b", "--random-weights", "--plan", PLAN], "qwen2.5-vl-3b is known by its checkpoint only"),
        (["llava-next-8b", "--random-weights", "--plan", PLAN], "did you mean llava-next-7b?"),
        (["mid", "--plan", PLAN], "mid has no checkpoint and serves with random weights only"),
        (["llava-next-7b", "--plan", "paper"], "llava-hf/llava-v1.6-mistral-7b-hf is not on this machine"),
    ],
)
def test_names_in_the_wrong_place(halfv, tmp_path, arguments, fragment):
    before = snapshot(tmp_path)
    refused(halfv("bench", "--model", *arguments), tmp_path, before, fragment)


def test_help_names_every_model_that_needs_no_checkpoint(halfv):
    result = halfv("bench", "--help")
    assert result.code == 0
    shown = "".join(result.out.split()).split("With--random-weights:")[1].split("--profile")[0]  # lines break in names
    sized = {name for name in (*MODELS, *ALIASES) if find(name).config is not None}
    assert {name for name in (*MODELS, *ALIASES) if name in shown} == sized
