"""What only profiles since 1.3 hold: witnesses, verdicts, the second stage alone, and whether the choice holds."""

from itertools import combinations

import pytest

from halfv_accel.evidence import Witness
from halfv_probe.views.canvas import NARROW
from halfv_probe.views.report import choices, stability
from halfv_probe.views.report.document import report_page
from halfv_probe.views.report.second_stage import draw_second_stage
from halfv_probe.views.report.sections import spans
from halfv_probe.views.report.witnesses import STAGES, draw_witnesses, in_words, measured

from .drawing import drawn, inside
from .pages import Page
from .profiles import made_up

INCHES = (NARROW, 7.0)
NEW = {
    "stages": dict(witnesses={}),
    "second-stage": dict(isolated=[]),
    "holds": dict(holds=[]),
    "utility": dict(utility=[], utility_by_stage=[]),
}


@pytest.mark.parametrize("section", NEW)
def test_a_section_vanishes_with_its_evidence_and_alone(section):
    full, without = Page(report_page(made_up())), Page(report_page(made_up(**NEW[section])))
    assert set(full.sections) - set(without.sections) == {section}
    assert set(without.sections) <= set(full.sections)
    assert "Not measured in this profile" in without.sections["provenance"]


def said(**layers):
    return [Witness(curve=name.replace("_", " "), layer=layer, says="") for name, layer in layers.items()]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            dict(visual_entropy=3, attention=4),
            "agree, give or take one layer, on where Stage II begins: layer 3 (",
        ),
        (
            dict(visual_entropy=3, attention=5),
            "disagree about where Stage II begins: layer 3 (visual entropy), ",
        ),
        (dict(attention=5, text_entropy=5, flow=4), "agree, give or take one layer, on where Stage II begins: layer 4"),
        (
            dict(visual_entropy=3, attention=None),
            "Only one curve names where Stage II begins: layer 3 (visual entropy)",
        ),
        (dict(visual_entropy=3, flow=4, attention=None, maturity=None), "; attention and maturity name none."),
        (dict(visual_entropy=None), "No curve names where Stage II begins."),
    ],
)
def test_curves_agree_or_do_not_in_words(layers, words):
    assert words in in_words("ivr", said(**layers))


@pytest.mark.parametrize(
    ("layers", "ivr", "ssr"),
    [(10, 1, 2), (10, 8, 9), (28, 3, 20), (28, 26, 27), (80, 40, 41), (80, 1, 2), (80, 78, 79)],
)
def test_every_witness_has_its_line_and_its_number(layers, ivr, ssr):
    profile = made_up(layers, ivr, ssr, "freeze")
    figure = drawn(draw_witnesses, profile, inches=INCHES)
    assert inside(figure)
    for axes, (name, curve) in zip(figure.axes, measured(profile).items(), strict=True):
        named = {
            f"{STAGES[stage].removeprefix('Stage ')}: {witness.layer}": witness.layer
            for stage, witnesses in profile.evidence.witnesses.items()
            for witness in witnesses
            if witness.curve == name and witness.layer is not None
        }
        texts = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text() != "0"}
        assert set(texts) == set(named)
        lines = [line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 1.4]
        assert sorted(lines) == sorted(named.values())
        for one, other in combinations(texts.values(), 2):
            assert not one.overlaps(other)
        shown = next(line for line in axes.lines if len(line.get_xdata()) == len(curve) and line.get_marker() == "o")
        assert [y for y in shown.get_ydata() if y == y] == [y for y in curve if not name.endswith("KL") or y > 1e-8]
        assert (axes.get_yscale() == "log") is name.endswith("KL")
    for one, other in combinations(figure.axes, 2):
        assert not one.get_tightbbox().overlaps(other.get_tightbbox())


@pytest.mark.parametrize("kl", [[0.0] * 10, []])
def test_witnesses_of_curves_that_are_flat_or_missing_are_told(kl):
    profile = made_up(10, 2, 7, layer_kl=kl, suffix_kl=kl, maturity=[], attention_to_visual=[])
    page = Page(report_page(profile))
    assert "layer KL" in page.sections["stages"]
    columns = set(page.tables["witness_curves.csv"][0])
    assert ("layer_kl_nats" in columns) is bool(kl) and "maturity_share" not in columns
    assert len(page.tables["witnesses.csv"]) == 8


def test_verdicts_stand_side_by_side_and_a_disagreement_is_told_and_marked():
    page = Page(report_page(made_up()))
    text = page.sections["choice"]
    assert "The evidence disagrees about L_SSR: layer 20 by the curve, layer 15 by KL, layer 20 by trials." in text
    assert "agrees, give or take one layer, about L_IVR and SSR mode." in text
    assert [cell for cell in page.strong if cell.startswith("≠ layer")] == ["≠ layer 15"]
    assert {row["choice"]: row["by_kl"] for row in page.tables["verdicts.csv"]} == {
        "ivr": "",
        "ssr": "15",
        "mode": "sparse",
    }


def test_one_layer_more_or_less_is_no_disagreement():
    same = dict(ivr=dict(curve="4", kl="2", trials="3", agree=True))
    profile = made_up(28, 3, 20, verdicts=same)
    assert choices.in_words(profile) == ["The evidence agrees, give or take one layer, about L_IVR."]
    assert not [cell for cell in Page(report_page(profile)).strong if "layer" in cell]


def test_a_plan_without_second_stage_shows_what_the_evidence_says_of_it():
    verdict = dict(curve="20", kl=None, trials="None", agree=False)
    page = Page(report_page(made_up(mode="none", verdicts=dict(ssr=verdict))))
    assert "≠ layer 20" in page.strong and "layer 20 by the curve, none by trials" in page.sections["choice"]


def test_the_second_stage_is_a_line_a_mode():
    profile = made_up()
    axes = drawn(draw_second_stage, profile, inches=(NARROW, 4.0)).axes[0]
    for line in axes.lines[-3:]:
        mode = line.get_label().split(":")[0]
        runs = [run for run in profile.evidence.isolated if run.mode == mode]
        assert line.get_xydata().tolist() == [[run.layer, run.drop] for run in runs]
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines[-3:]}) == 3
    section = Page(report_page(profile)).sections["second-stage"]
    least = min((run for run in profile.evidence.isolated if run.mode == "sparse"), key=lambda run: run.drop)
    assert f"Sparse loses least from layer {least.layer} on" in section


def test_of_equal_losses_the_earliest_layer_is_named():
    runs = [dict(mode="freeze", layer=layer, flops=0.5, agreement=1, drop=0, kl=0, samples=9) for layer in (7, 3, 5)]
    page = Page(report_page(made_up(10, 2, 7, isolated=runs)))
    assert "Freeze loses least from layer 3 on: 0%." in page.sections["second-stage"]
    assert "sparse" not in page.sections["second-stage"].split("The lowest line")[0]


def test_flips_are_counted_and_marked_in_words():
    page = Page(report_page(made_up()))
    assert (
        "Of 10 other conditions 3 flip something: L_IVR in 2, L_SSR in 1, SSR mode in 1, plan in 1."
        in (page.sections["holds"])
    )
    marked = [cell for cell in page.strong if cell.startswith(("flips", "≠ ")) and "layer" not in cell]
    assert marked == [
        "flips: L_IVR",
        "≠ 7",
        "flips: L_IVR, L_SSR",
        "≠ 8",
        "≠ 23",
        "flips: SSR mode, plan",
        "≠ none",
        "≠ 25% from 3",
    ]
    titles = [page.sections["holds"].index(title) for title in stability.ABOUT.values()]
    assert titles == sorted(titles)


@pytest.mark.parametrize(
    ("flips", "words"),
    [
        ([[]], "It holds: nothing flips under 1 other condition."),
        ([[], []], "It holds: nothing flips under 2 other conditions."),
        ([["stable"]], "Of 1 other condition 1 flips something: three stages or not in 1."),
        ([["ivr"], [], ["ivr", "plan"]], "Of 3 other conditions 2 flip something: L_IVR in 2, plan in 1."),
    ],
)
def test_the_count_of_flips(flips, words):
    one = made_up().evidence.holds[1]
    assert stability.in_words([one.model_copy(update={"flips": found}) for found in flips]) == words


def test_without_the_curves_own_layers_there_is_nothing_to_compare_with():
    assert "As calibrated" in Page(report_page(made_up())).sections["holds"]
    assert "As calibrated" not in Page(report_page(made_up(curve_only={}))).sections["holds"]


def test_utility_by_stage_marks_the_lowest_also_without_the_map():
    for profile in (made_up(), made_up(utility=[])):
        page = Page(report_page(profile))
        assert "in stage II start" in page.sections["utility"]
        assert "0.21 (lowest)" in page.strong
        assert [float(row["utility"]) for row in page.tables["utility_by_stage.csv"]] == [0.87, 0.21, 0.29, 0.65]


def test_layers_are_told_in_runs():
    assert [spans(layers) for layers in ([], [4], [1, 2, 3], [9, 1, 2, 5])] == ["none", "4", "1 to 3", "1 to 2, 5, 9"]


def test_the_page_says_what_was_asked_for():
    profile = made_up()
    settings = dict(k=0.9, latency=True, null_samples=3)
    calibration = type(profile.calibration).model_validate(profile.calibration.model_dump() | {"settings": settings})
    told = Page(report_page(profile.model_copy(update={"calibration": calibration}))).sections["provenance"]
    assert "k 0.9, latency True, null samples 3" in told
    assert "settings" not in Page(report_page(profile)).sections["provenance"]
