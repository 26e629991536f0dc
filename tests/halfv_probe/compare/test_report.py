"""Files hold the numbers they were made from, the page says what the tables say, and no name covers another."""

import io
import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation, Text

from halfv_accel import HalfVError
from halfv_accel.published import METHODS
from halfv_probe.choice.choose import pareto
from halfv_probe.compare import report
from halfv_probe.compare.frontier import draw_frontier, inches
from halfv_probe.compare.page import budget_rows, markdown, yes_no_rows
from halfv_probe.compare.plain_words import paragraph
from halfv_probe.compare.report import records, write
from halfv_probe.compare.scores import TYPES, typed
from halfv_probe.compare.verdicts import judge
from tests.halfv_probe.views.drawing import drawn

from .made_up import made_up, rows_of

FAILED = [("fastv@0.111", "fastv cannot go below 0.27 | on average here, as it acts at layer 2")]
FROM = {"model": "made up", "versions": {"halfv": "0", "torch": "1"}, "seed": 3}
MANY = [name for name in METHODS if name not in ("random_choice", "downsample")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "new" / "folder"
    results = made_up(150, skill=dict(divprune=0.2))
    found = write(results, FAILED, FROM, out, "tokens", draws=300)
    return out, results, found


def test_csv_and_parquet_are_the_results(written):
    out, results, _ = written
    text = (out / "results.csv").read_text()
    how = dict(float_precision="round_trip", keep_default_na=False, na_values=[""], dtype=TYPES)
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(text), **how)[list(results)], typed(results).replace("", pd.NA)
    )
    pytest.importorskip("pyarrow")
    pd.testing.assert_frame_equal(pd.read_parquet(out / "results.parquet"), typed(results))


def test_parquet_is_left_out_where_nothing_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    write(made_up(5), [], FROM, tmp_path, "flops", draws=50)
    assert not (tmp_path / "results.parquet").exists() and (tmp_path / "results.csv").exists()


def test_json_holds_provenance_tables_and_failures(written):
    out, results, _ = written
    document = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    verdicts = judge(results, draws=300)
    assert document["provenance"] == FROM and document["match"] == "tokens" and document["draws"] == 300
    assert document["failures"] == [{"entrant": FAILED[0][0], "reason": FAILED[0][1]}]
    for name in ("overall", "tasks", "hard", "yes_no"):
        assert document[name] == records(getattr(verdicts, name)) != []
    assert document["overall"][0]["against_random"] is None


def test_the_picture_has_its_numbers_beside_it(written):
    out, results, _ = written
    table = pd.read_csv(out / "frontier.csv", float_precision="round_trip")
    overall = judge(results, draws=300).overall
    assert list(table["score"]) == list(overall["score"]) and list(table["flops_share"]) == list(overall["flops_share"])
    front = pareto(list(table["flops_share"]), list(1 - table["score"]))
    assert list(np.flatnonzero(table["on_pareto_front"])) == sorted(front)
    assert (out / "frontier.png").stat().st_size > 20_000


def test_the_page_has_every_table_and_says_what_is_matched(written):
    page = (written[0] / "report.md").read_text()
    assert "matched on the average number of visual tokens over decoder layers" in page
    assert "| fastv@0.111 | fastv cannot go below 0.27 \\| on average here" in page
    for heading in ("Results", "Where the picture's detail is needed", "Questions answered by yes or no"):
        assert f"## {heading}" in page
    assert "300 draws of samples (seed 0)" in page and "- versions: halfv 0, torch 1" in page
    for lines in (part.splitlines() for part in page.split("\n\n") if part.startswith("|")):
        cells = {len(line.replace("\\|", "").split("|")) for line in lines}
        assert len(cells) == 1  # every row as long as the header


def test_rows_for_the_terminal_are_those_of_the_page(written):
    out, _, found = written
    page = (out / "report.md").read_text()
    assert [row["method"] for row in found[:2]] == ["untouched", "DivPrune"]  # the best of the largest budget first
    assert len({tuple(row) for row in found}) == 1 and "colour" not in found[0]
    for row in found:
        line = next(line for line in page.splitlines() if line.startswith(f"| {row['budget']} | {row['method']} |"))
        assert all(f" {cell} " in line for cell in row.values() if cell)
    divprune = found[1]
    assert divprune["verdict"] == "better than random; no loss shown"
    assert not any("[" in cell for row in found for cell in row.values())  # intervals make lines too long
    assert divprune["avg. visual tokens"] == "32.0" and divprune["FLOPs %"] == "60.0"


def test_words_say_who_is_better_worse_and_not_told_apart():
    skill = dict(fastv=0.25, divprune=-0.3)
    said = paragraph(judge(made_up(400, methods=("fastv", "divprune", "holov"), skill=skill), draws=500))
    assert "At 50%: FastV is better than random, DivPrune is worse than random, 2 of 4 cannot be told apart" in said
    assert "(FastV), and it stands alone" in said and "points to be seen" in said


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (lambda: made_up(30, labelled=False), "without answers to go by"),
        (lambda: made_up(30).query("method == 'fastv'"), "without the untouched model beside it"),
        (lambda: pd.concat([rows_of("untouched", "untouched", None, [True] + [False] * 9)]), "look at agreement"),
        (lambda: made_up(1), "On 1 samples"),
        (lambda: pd.concat([made_up(9), rows_of("$x|_{模型}", "plan", None, [True] * 9)]), "without a matched budget"),
        (lambda: made_up(60, task=[f"task {number}" for number in range(60)]), "On 60 samples"),
        (lambda: made_up(40, budgets=(0.8, 0.6, 0.5, 0.4, 0.3), task=[""] * 40), "At 80%"),
    ],
)
def test_odd_comparisons_are_written(tmp_path, results, expected):
    found = write(results().reset_index(drop=True), [], {}, tmp_path, "flops", draws=50)  # no warning either
    page = (tmp_path / "report.md").read_text()
    assert expected in page and "Nothing." in page and found
    assert "nan" not in page.lower().replace("nan tokens", "") and "inf" not in page.replace("InfoPrune", "")
    json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)


def test_many_tasks_do_not_make_a_table_of_a_hundred_columns():
    task = [f"task {number % 20:02d}" for number in range(100)]
    page = markdown(judge(made_up(100, task=task), draws=50), [], {}, "tokens")
    assert "8 smaller or unnamed tasks are in tasks.csv" in page and "| task 11 |" in page and "| task 12 |" not in page


def test_the_best_of_a_budget_is_no_distance_from_itself():
    found = budget_rows(judge(made_up(100, skill=dict(divprune=0.2)), draws=50))
    assert found[1]["method"] == "DivPrune" and found[1]["to the best"] == "0"
    assert found[0]["to random"] == found[0]["to the best"] == found[0]["to untouched"] == "-"


def test_yes_no_rows_name_the_entrant():
    found = yes_no_rows(judge(made_up(30), draws=50))
    assert {row["task"] for row in found} == {"existence"}
    assert "random (mean of 3 seeds)" in {row["method"] for row in found}


def test_entrants_that_lack_samples_are_among_the_failures(tmp_path):
    results = made_up(20)
    write(results[:-1], FAILED, FROM, tmp_path, "tokens", draws=50)
    reasons = [row["reason"] for row in json.loads((tmp_path / "results.json").read_text())["failures"]]
    assert reasons == [FAILED[0][1], "has results on 19 of 20 samples only"]


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HalfVError, match="cannot be made a folder"):
        write(made_up(3), [], FROM, tmp_path / "file", "tokens")
    (tmp_path / "report.md").mkdir()
    with pytest.raises(HalfVError, match=r"report\.md is a folder"):
        write(made_up(3), [], FROM, tmp_path, "tokens")
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("spread", [0.0, 0.15], ids=["matched on FLOPs", "matched on tokens"])
def test_no_name_covers_another_or_leaves_the_page(spread):
    draw = np.random.default_rng(0)
    skill = {name: draw.normal(0, 0.05) for name in MANY}
    results = made_up(40, methods=MANY, budgets=(0.5, 0.25, 0.111), skill=skill)
    shift = {name: draw.uniform(0, spread) for name in results["entrant"].unique()}
    results["flops"] += results["entrant"].map(shift) * (results["method"] != "untouched")
    verdicts = judge(results, draws=50)
    figure = drawn(draw_frontier, verdicts, inches=inches(verdicts))
    figure.draw_without_rendering()  # texts remember how large they were in the file
    top, *panels = figure.axes
    renderer = figure.canvas.get_renderer()
    labels = [text for text in top.texts if isinstance(text, Annotation)]
    assert {"untouched", "random", "Downsampling"} <= {text.get_text() for text in labels}
    boxes = [Text.get_window_extent(text, renderer) for text in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    points = top.transData.transform(
        np.column_stack([verdicts.overall["flops_share"], 100 * verdicts.overall["score"]])
    )
    assert not any(box.contains(*point) for box in boxes for point in points)
    for panel in panels:
        names = [text.get_window_extent(renderer) for text in panel.get_yticklabels()]
        assert len(names) == len(MANY) + 2
        assert not any(one.overlaps(other) for one, other in combinations(names, 2))
        assert not any(name.overlaps(other.get_window_extent()) for name in names for other in figure.axes)
    legend, caption = figure.legends[0].get_window_extent(), figure._suptitle.get_window_extent()
    everything = {"legend": legend, "caption": caption, **{str(axes): axes.get_tightbbox() for axes in figure.axes}}
    page = figure.bbox.padded(1)
    outside = [name for name, box in everything.items() if not all(page.contains(*corner) for corner in box.corners())]
    assert outside == []
    for one, other in combinations(everything, 2):
        assert not everything[one].overlaps(everything[other]), (one, other)
