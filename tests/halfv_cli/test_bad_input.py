"""Whatever a user gets wrong is one line on stderr with the way out, a non-zero exit, and nothing half-written."""

import json

import pytest

from halfv_data import scenes


def refused(result, tmp_path, before, *fragments):
    """The law that every test here states."""
    assert result.code != 0
    assert result.out == ""
    assert result.said.startswith("halfv: ")
    assert result.said.count("\n") == 1, result.err
    assert "Traceback" not in result.err
    for fragment in fragments:
        assert fragment in result.err
    assert snapshot(tmp_path) == before


def snapshot(folder):
    """Names and contents of everything below a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def check(halfv, tmp_path):
    """``check(fragments, *arguments)`` runs the command and holds it to the law."""

    def run(fragments, *arguments):
        before = snapshot(tmp_path)
        refused(halfv(*arguments), tmp_path, before, *fragments)

    return run


def spoil(profile, **changes):
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = profile
        for parent in parents:
            part = part[parent]
        part[last] = value
    return json.dumps(profile)


SPOILT = {
    "truncated": (lambda p: json.dumps(p)[:200].encode(), "not complete JSON"),
    "empty": (lambda p: b"", "not complete JSON"),
    "binary": (lambda p: bytes(range(256)), "not UTF-8"),
    "a list": (lambda p: b"[1, 2]", "not an object"),
    "not a profile": (lambda p: b'{"a": 1}', "schema_version"),
    "future": (lambda p: spoil(p, schema_version="3.0").encode(), "3.0"),
    "layer is text": (lambda p: spoil(p, ivr__layer="two").encode(), "ivr.layer"),
    "layer too deep": (lambda p: spoil(p, ivr__layer=99).encode(), "99"),
    "layer zero": (lambda p: spoil(p, ivr__layer=0).encode(), "ivr.layer"),
    "ratio above one": (lambda p: spoil(p, ivr__retention=1.5).encode(), "ivr.retention"),
    "ratio zero": (lambda p: spoil(p, ivr__retention=0).encode(), "ivr.retention"),
    "ratio is null": (lambda p: spoil(p, ivr__retention=None).encode(), "ivr.retention"),
    "curve missing": (lambda p: spoil(p, evidence__entropy={"visual": [1.0] * 11}).encode(), "evidence.entropy"),
    "huge number": (lambda p: b'{"schema_version": "1.0", "ivr": ' + b"9" * 5000 + b"}", "halfv calibrate"),
    "unknown mode": (lambda p: spoil(p, ssr__mode="melt").encode(), "ssr.mode"),
}


@pytest.mark.parametrize("command", ["plot-entropy", "run"])
@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_profiles(check, tmp_path, profile, command, case):
    content, fragment = SPOILT[case]
    (tmp_path / "profile.json").write_bytes(content(profile))
    check([fragment], command, "--profile", "profile.json")


@pytest.mark.parametrize("command", ["plot-entropy", "run"])
def test_missing_profile_says_how_to_make_one(check, command):
    check(["no.json does not exist", "halfv calibrate"], command, "--profile", "no.json")


def test_a_folder_is_no_profile(check, tmp_path):
    check(["is a folder"], "run", "--profile", tmp_path)


def test_profile_of_another_architecture(check, profile_path):
    arguments = ("run", "--profile", profile_path, "--model", "tiny-llava")
    check(["Qwen2_5_VLForConditionalGeneration", "LlavaForConditionalGeneration", "halfv calibrate"], *arguments)


@pytest.fixture
def pictures(tmp_path):
    """A missing, a fake, a cut and a good picture."""
    good = tmp_path / "good.png"
    next(iter(scenes(1, seed=0))).image.save(good)
    (tmp_path / "fake.png").write_text("this is no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    return tmp_path


@pytest.mark.parametrize("name", ["missing.png", "fake.png", "cut.png", "."])
def test_bad_pictures(check, pictures, profile_path, name):
    arguments = ("run", "--profile", profile_path, "--prompt", "Is there a star?", "--image", pictures / name)
    check([str(pictures / name).removesuffix("/.")[-70:]], *arguments)  # long paths are shown by their ends


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--prompt", "What color is the star?"], "--image"),
        (["--image", "good.png"], "--prompt"),
        (["--image", "good.png", "--prompt", " "], "--prompt"),
        (["--image", "good.png", "--prompt", "x", "--max-new-tokens", "0"], "max-new-tokens"),
        (["--device", "banana"], "banana"),
        (["--dtype", "int8"], "int8"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_run_arguments(check, pictures, profile_path, arguments, fragment):
    check([fragment], "run", "--profile", profile_path, *arguments)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "neither --profile nor --plan was given"),
        (["--model", "tiny-llava"], "neither --profile nor --plan was given"),
        (["--plan", "ivr:2:0.5", "--profile", "no.json"], "both --profile and --plan were given"),
        (["--plan", "ivr:2:0.5"], "add --model, for example --model tiny-llava"),
        (["--plan", "paper"], "add --model"),
        (["--plan", "", "--model", "tiny-llava"], "starts with ''"),
        (["--plan", "melt:2", "--model", "tiny-llava"], "starts with 'melt'"),
        (["--plan", "ivr:10:0.5", "--model", "tiny-llava"], "the model has 10 layers"),
        (["--plan", "paper", "--model", "tiny-llava"], "no plan for a llava with 10 layers of width 128"),
        (["--plan", "paper", "--model", "qwen3-vl-8b"], "the paper has no plan for qwen3-vl-8b, only for llava-1.5-7b"),
        (["--plan", "paper", "--model", "llava-1.5-7b"], "llava-hf/llava-1.5-7b-hf is not on this machine"),
        (["--plan", "ivr:2:0.5", "--model", "mid"], "mid has no checkpoint"),
    ],
)
def test_bad_plans_to_run(check, arguments, fragment):
    check([fragment], "run", *arguments)


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("qwen2.5-vl-8b", "qwen2.5-vl-7b"),
        ("llava-next-8b", "did you mean llava-next-7b?"),
        ("llava-next-7b", "llava-hf/llava-v1.6-mistral-7b-hf"),
        ("mid", "mid has no checkpoint and serves with random weights only"),
        ("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("someone/some-model", "someone/some-model"),
        ("./no-such-folder", "no-such-folder"),
        ("tiny-qwen", "tiny-qwen2.5-vl"),
    ],
)
def test_unknown_models(check, name, fragment):
    check([fragment], "calibrate", "--model", name)


def test_a_folder_without_a_model(check, tmp_path):
    (tmp_path / "empty").mkdir()
    check(["config.json"], "calibrate", "--model", tmp_path / "empty")


@pytest.mark.parametrize("samples", ["0", "-3", "many"])
def test_bad_sample_numbers(check, samples):
    check(["samples"], "calibrate", "--model", "tiny-llava", "--samples", samples)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--out", "no-such-folder/profile.json"], "no-such-folder"),
        (["--out", "."], "is a folder"),
        (["--out", "/proc/profile.json"], "/proc/profile.json"),
        (["--fidelity", "maybe"], "maybe"),
        (["--device", "banana"], "banana"),
        (["--dtype", "float99"], "float99"),
        (["--data", "no-such-data.jsonl"], "no-such-data.jsonl"),
        (["--data", "empty.jsonl"], "empty.jsonl"),
        (["--data", "broken.jsonl"], "line 2"),
        (["--data", "imageless.jsonl"], "line 1"),
        (["--data", "bare"], "bare"),
    ],
)
def test_bad_calibrate_arguments(check, tmp_path, arguments, fragment):
    next(iter(scenes(1, seed=0))).image.save(tmp_path / "a.png")
    good = json.dumps({"image": "a.png", "question": "Is there a star?"})
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text(f"{good}\n{{broken\n")
    (tmp_path / "imageless.jsonl").write_text('{"question": "Is there a star?"}\n')
    (tmp_path / "bare").mkdir()
    check([fragment], "calibrate", "--model", "tiny-llava", "--samples", "1", *arguments)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--out", "no-such-folder/e.png"], "no-such-folder"),
        (["--out", "e.docx"], "docx"),
        (["--out", "."], "is a folder"),
    ],
)
def test_bad_plot_arguments(check, profile_path, arguments, fragment):
    check([fragment], "plot-entropy", "--profile", profile_path, *arguments)


def test_a_failed_calibration_leaves_the_old_profile(check, tmp_path, monkeypatch):
    (tmp_path / "profile.json").write_text("the old one")

    def fails(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("halfv_probe.calibration.calibrate.calibrate", fails)
    check(["unexpected RuntimeError: out of memory", "--debug"], "calibrate", "--model", "tiny-llava", "--samples", "1")


def test_a_profile_whose_model_has_gone_says_how_to_name_another(check, tmp_path, profile):
    (tmp_path / "profile.json").write_text(spoil(profile, model__id="/gone/model"))
    check(["/gone/model", "--model"], "run", "--profile", "profile.json")


def test_wrong_usage_names_the_help(check):
    check(["--help"], "calibrate")
    check(["--help"], "calibrate", "--modle", "x")
    check(["--help"], "melt")


def test_debug_shows_the_traceback(halfv):
    with pytest.raises(ValueError, match="does not exist"):
        halfv("run", "--profile", "no.json", "--debug")


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--max-drop", 0.01, "--target-flops", 0.5], "two goals"),
        (["--max-drop", 0], "--max-drop is 0"),
        (["--max-drop", 2], "--max-drop is 2"),
        (["--target-flops", -0.5], "--target-flops is -0.5"),
        (["--max-drop", 0.02, "--confidence", 1], "--confidence is 1"),
        (["--k", "many"], "--k is 'many'"),
        (["--k", "2.5"], "--k is '2.5'"),
        (["--k", "-1"], "--k is '-1'"),
        (["--max-drop", 0.02, "--samples", 20], "228 are needed"),
    ],
)
def test_goals_that_make_no_sense(check, options, fragment):
    check([fragment], "calibrate", "--model", "tiny-llava", *options)


def test_a_journal_of_something_else_is_not_gone_on_with(check, tmp_path):
    (tmp_path / "profile.json.journal").write_text('{"model": "another"}\n')
    check(["another calibration", "--resume"], "calibrate", "--model", "tiny-llava", "--samples", 2, "--resume")
    (tmp_path / "profile.json.journal").write_text("what is this\n")
    check(["is not a journal"], "calibrate", "--model", "tiny-llava", "--samples", 2, "--resume")
