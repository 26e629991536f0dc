"""The entropy plot: its numbers are the profile's, and no name covers another, a curve or a line."""

import csv
from itertools import combinations

import pytest

from halfv_accel import HalfVError
from halfv_probe.views.canvas import NARROW, WIDE
from halfv_probe.views.landmarks import bands, marks, percent
from halfv_probe.views.plots import CURVES, draw_entropy, draw_lifecycle, plot_entropy

from .drawing import drawn
from .profiles import CURVES as GROUPS
from .profiles import made_up

NEAR = [(10, 1, 2), (10, 2, 3), (10, 1, 9), (10, 5, 5), (10, 8, 9), (28, 1, 27), (28, 26, 27), (28, 13, 15)]
DEPTHS = [*NEAR, (28, 9, 19), (32, 3, 15), (80, 1, 2), (80, 40, 41), (80, 78, 79), (4, 2, 3)]


@pytest.mark.parametrize(("layers", "ivr", "ssr"), DEPTHS)
@pytest.mark.parametrize(("draw", "inches"), [(draw_lifecycle, (WIDE, 7.0)), (draw_entropy, (NARROW, 4.3))])
def test_names_meet_neither_each_other_nor_the_plot_nor_a_line(draw, inches, layers, ivr, ssr):
    figure = drawn(draw, made_up(layers, ivr, ssr, "freeze"), inches=inches)
    ribbon, plot = figure.axes[:2]
    named = {text.get_text(): text for text in ribbon.texts if text.get_text()}
    boxes = {name: text.get_window_extent() for name, text in named.items()}
    acts = [name for _, name in marks(made_up(layers, ivr, ssr, "freeze"))]
    assert set(acts) <= set(named)
    for (first, one), (second, other) in combinations(boxes.items(), 2):
        assert not one.overlaps(other), (first, second)
    for name, box in boxes.items():
        assert not box.overlaps(plot.get_window_extent()), name
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, name
    for name in acts:
        for line in ribbon.lines:
            (x, low), (_, high) = ribbon.transData.transform(line.get_xydata())
            box = boxes[name]
            assert not (box.x0 < x < box.x1 and low < box.y1 and high > box.y0), name


def test_the_legend_stands_below_all_axes():
    figure = drawn(draw_lifecycle, made_up())
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_curves_differ_without_colours():
    looks = {(style.get("linestyle", "-"), style["marker"]) for style in CURVES.values()}
    assert len(looks) == len(CURVES) == len({look[0] for look in looks})


@pytest.mark.parametrize("old", [True, False])
def test_numbers_beside_the_picture_are_the_profiles(tmp_path, old):
    profile = made_up(10, 2, 7, "freeze", old=old)
    numbers = plot_entropy(profile, tmp_path / "entropy.png")
    assert numbers == tmp_path / "entropy.csv"
    rows = list(csv.DictReader(numbers.read_text().splitlines()))
    assert [int(row["boundary"]) for row in rows] == list(range(11))
    for group in GROUPS:
        assert [float(row[f"entropy_{group}_nats"]) for row in rows] == profile.evidence.entropy[group]
        assert (f"entropy_{group}_std_nats" in rows[0]) is not old
    assert [float(row["layer_kl_nats"]) for row in rows[:-1]] == profile.evidence.layer_kl
    assert rows[-1]["layer_kl_nats"] == ""  # there is no layer behind the last


def test_equal_profiles_give_equal_pictures(tmp_path):
    for name in ("a.svg", "b.svg"):
        plot_entropy(made_up(10, 2, 7), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    "evidence",
    [
        dict(stable=False),
        dict(layer_kl=[], suffix_kl=[]),
        dict(layer_kl=[0.0] * 28, suffix_kl=[0.0] * 28),
        dict(curve_only={"ivr": 27, "ssr": 99}),
        dict(entropy={group: [0.0] * 29 for group in GROUPS}),
    ],
)
def test_odd_evidence_is_drawn(tmp_path, evidence):
    plot_entropy(made_up(name="/models/$x_{/模型", **evidence), tmp_path / "entropy.png")  # no warning either
    assert (tmp_path / "entropy.png").stat().st_size > 10_000


def test_stages_follow_the_curve_and_lines_the_plan():
    profile = made_up(28, 3, 20, curve_only={"ivr": 2, "ssr": 9})
    assert [(band.numeral, band.start, band.end) for band in bands(profile)] == [
        ("I", 0, 2),
        ("II", 2, 9),
        ("III", 9, 28),
    ]
    assert [layer for layer, _ in marks(profile)] == [3, 20]
    assert [band.end for band in bands(made_up(28, 3, 20, old=True))] == [3, 20, 28]  # 1.0 knows no other
    assert bands(made_up(stable=False)) == []


def test_a_plan_without_first_stage_has_no_mark_of_it():
    profile = made_up(10, 1, 6, "freeze")
    profile = profile.model_copy(update={"ivr": profile.ivr.model_copy(update={"retention": 1.0})})
    assert marks(profile) == [(6, "SSR 6: freeze")]


def test_numbers_that_cannot_be_written_leave_no_picture(tmp_path):
    (tmp_path / "entropy.csv").mkdir()
    with pytest.raises(HalfVError, match=r"entropy\.csv is a folder"):
        plot_entropy(made_up(), tmp_path / "entropy.png")
    assert not (tmp_path / "entropy.png").exists()


def test_shares_are_not_rounded_to_all_or_none():
    assert [percent(share) for share in (0, 1, 0.5, 0.375, 0.9999, 1e-6)] == [
        "0%",
        "100%",
        "50%",
        "37.5%",
        "99.9%",
        "<0.1%",
    ]


def greys(axes):
    return [line.get_ydata().tolist() for line in axes.lines if line.get_label() == "random weights"]


def test_random_weights_are_thin_and_grey_beside_the_model():
    null = made_up().evidence.null
    figure = drawn(draw_lifecycle, made_up())
    _, top, bottom = figure.axes
    assert greys(top) == [null.entropy[curve] for curve in CURVES]
    [kl] = greys(bottom)
    assert kl[:-1] == null.layer_kl[:-1]
    assert bottom.get_ylim()[0] < min(null.layer_kl[:-1])
    thin = [line for line in top.lines if line.get_label() == "random weights"]
    assert all(line.get_linewidth() < 1 for line in thin)
    assert [text.get_text() for text in figure.legends[0].get_texts()].count("random weights") == 1
    without = drawn(draw_lifecycle, made_up(null=None))
    assert not any(greys(axes) for axes in without.axes)


def test_scores_take_each_curve_less_its_mean_in_its_deviations(tmp_path):
    profile = made_up()
    top = drawn(draw_lifecycle, profile, "zscore").axes[1]
    visual = next(line for line in top.lines if line.get_label() == "visual tokens").get_ydata()
    assert (visual.mean(), visual.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    rows = list(csv.DictReader(plot_entropy(profile, tmp_path / "a.png", "zscore").read_text().splitlines()))
    assert [float(row["entropy_visual_zscore"]) for row in rows] == pytest.approx(visual.tolist())
    assert [float(row["entropy_visual_nats"]) for row in rows] == profile.evidence.entropy["visual"]
