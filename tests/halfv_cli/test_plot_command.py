"""``halfv plot-entropy``: one model or several, other numbers of eigenvalues, spectra; and what makes no sense."""

import csv
from pathlib import Path

import pytest

from tests.halfv_probe.views.profiles import made_up

from .test_bad_input import refused, snapshot

EXAMPLE = Path(__file__).parents[2] / "reports" / "example" / "profile.json"
OTHER = EXAMPLE.parents[1] / "tiny_vlm" / "tiny-llava" / "profile.json"


@pytest.fixture
def full(tmp_path):
    """A profile in which everything was measured."""
    made_up(10, 2, 7).save(tmp_path / "full.json")
    return tmp_path / "full.json"


def columns(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_plot_entropy_says_where_the_numbers_are(halfv, tmp_path):
    result = halfv("plot-entropy", "--profile", EXAMPLE, "--out", "curves.pdf")
    assert result.out == "wrote curves.pdf and curves.csv\n"
    assert (tmp_path / "curves.csv").read_text() == (EXAMPLE.parent / "entropy.csv").read_text()


def test_several_models_are_compared_over_depth(halfv, tmp_path, full):
    result = halfv("plot-entropy", "--profile", EXAMPLE, "--profile", OTHER, "--profile", full, "--out", "many.png")
    assert (result.code, result.out) == (0, "wrote many.png and many.csv\n"), result.err
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")
    table = columns(tmp_path / "many.csv")
    assert list(dict.fromkeys(table["model"])) == ["tiny-qwen2.5-vl", "tiny-llava", "someone/some-model"]
    assert {"depth_percent", "entropy_visual_nats", "entropy_visual_zscore", "layer_kl_nats"} < set(table)


def test_the_scale_is_nats_for_one_and_z_scores_for_several(halfv, tmp_path):
    pictures = {}
    for name, options in {
        "one": [],
        "one nats": ["--scale", "nats"],
        "one zscore": ["--scale", "zscore"],
        "two": ["--profile", OTHER],
        "two zscore": ["--profile", OTHER, "--scale", "zscore"],
        "two nats": ["--profile", OTHER, "--scale", "nats"],
    }.items():
        assert halfv("plot-entropy", "--profile", EXAMPLE, *options, "--out", "a.svg").code == 0
        pictures[name] = (tmp_path / "a.svg").read_bytes()
    assert pictures["one"] == pictures["one nats"] != pictures["one zscore"]
    assert pictures["two"] == pictures["two zscore"] != pictures["two nats"]


def test_other_numbers_of_eigenvalues(halfv, tmp_path, full):
    result = halfv("plot-entropy", "--profile", full, "--k", "2, 4,16", "--out", "k.png")
    assert (result.code, result.out) == (0, "wrote k.png and k.csv\n"), result.err
    assert list(dict.fromkeys(columns(tmp_path / "k.csv")["k"])) == ["2", "4", "16"]


def test_the_spectrum(halfv, tmp_path):
    result = halfv("plot-entropy", "--profile", EXAMPLE, "--spectrum", "--out", "s.png")
    assert (result.code, result.out) == (0, "wrote s.png and s.csv\n"), result.err
    assert len(columns(tmp_path / "s.csv")["eigenvalue_1_share"]) == 11


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--scale", "bits"], ["scale", "bits"]),
        (["--k", "many"], ["--k is 'many'", "2,4,8,16"]),
        (["--k", "2,,4"], ["--k is '2,,4'"]),
        (["--k", "0"], ["--k is '0'"]),
        (["--k", "9" * 5000], ["--k is '999"]),
        (["--k", "2,3,5"], ["no curves for k = 3, 5", "2, 4, 8, 12, 16", "halfv calibrate"]),
        (["--k", "2", "--spectrum"], ["--k and --spectrum"]),
        (["--k", "2", "--profile", EXAMPLE], ["--k draws one model, and 2 profiles"]),
        (["--spectrum", "--profile", EXAMPLE], ["--spectrum draws one model, and 2 profiles"]),
        (["--spectrum", "--scale", "nats"], ["leave --scale out"]),
        (["--profile", "no.json"], ["no.json does not exist", "halfv calibrate"]),
        (["--profile", EXAMPLE, "--out", "a.docx"], ["docx"]),
        (["--k", "2", "--out", "no-such-folder/a.png"], ["no-such-folder"]),
        (["--spectrum", "--out", "."], ["is a folder"]),
    ],
)
def test_what_makes_no_sense_is_refused(halfv, tmp_path, full, arguments, fragments):
    before = snapshot(tmp_path)
    result = halfv("plot-entropy", "--profile", full, *arguments)
    refused(result, tmp_path, before, *fragments)
    assert len(result.err) < 500


def test_an_old_profile_has_no_other_k_and_no_spectrum(halfv, tmp_path):
    made_up(10, 2, 7, old=True).save(tmp_path / "profile.json")
    before = snapshot(tmp_path)
    refused(halfv("plot-entropy", "--k", "2,4"), tmp_path, before, "k = 2, 4, only for 12", "calibrate again")
    refused(halfv("plot-entropy", "--spectrum"), tmp_path, before, "no spectrum", "calibrate again")
