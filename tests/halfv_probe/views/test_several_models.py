"""Several models in one picture: depth in percent, curves that compare, and names that can be told apart."""

import numpy as np
import pandas as pd
import pytest

from halfv_accel import HalfVError
from halfv_probe.views.several_models import COLOURS, _look, draw_models, plot_models
from halfv_probe.views.tables import labels, models, zscores

from .drawing import drawn, inside
from .profiles import made_up

LONG = "/models/" + "deep/" * 40 + "llava-$x_{"


def three():
    return [made_up(10, 2, 7), made_up(28, 3, 20, "freeze", name=LONG), made_up(80, 5, 60, "none", layer_kl=[])]


def curves(axes):
    """(x, y) of every line that joins its points."""
    return [line.get_xydata().T for line in axes.lines if line.get_linestyle() != "None"]


@pytest.mark.parametrize("scale", ["zscore", "nats"])
def test_every_model_runs_from_0_to_100_percent(scale):
    profiles = three()
    figure = drawn(draw_models, profiles, scale)
    for profile, (depth, values) in zip(profiles, curves(figure.axes[0]), strict=True):
        curve, last = profile.evidence.entropy["visual"], profile.model.num_layers
        assert depth == pytest.approx([100 * boundary / last for boundary in range(last + 1)])
        expected = curve if scale == "nats" else (np.array(curve) - np.mean(curve)) / np.std(curve)
        assert values == pytest.approx(expected, abs=1e-9)


def test_layer_kl_lies_below_on_a_log_axis_and_what_is_none_on_its_edge():
    profiles = three()
    below = drawn(draw_models, profiles).axes[1]
    assert below.get_yscale() == "log"
    for profile, (_, values) in zip(profiles, curves(below), strict=True):
        kl = profile.evidence.layer_kl
        assert values[:-1].tolist() == kl[:-1] and (not kl or np.isnan(values[-1]))
    edge = [line for line in below.lines if line.get_linestyle() == "None"]
    assert [line.get_xdata().tolist() for line in edge] == [pytest.approx([90]), pytest.approx([100 * 27 / 28])]
    assert {y for line in edge for y in line.get_ydata()} == {below.get_ylim()[0]}


def test_without_layer_kl_there_is_one_panel():
    assert len(drawn(draw_models, [made_up(layer_kl=[]), made_up(10, 2, 7, layer_kl=[])]).axes) == 1


def test_filled_markers_are_where_the_plan_acts():
    top = drawn(draw_models, three()).axes[0]
    filled = [line.get_xdata().tolist() for line in top.lines if line.get_linestyle() == "None"]
    assert filled == [pytest.approx([20, 70]), pytest.approx([300 / 28, 2000 / 28]), pytest.approx([5 / 0.8])]


def test_names_fit_and_the_legend_covers_nothing():
    figure = drawn(draw_models, [*three(), *three()], "nats")
    assert inside(figure)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "(28 layers, k = 12)" in named[1] and "llava-" in named[1]


def test_no_two_models_have_one_name_or_one_look():
    same = [made_up(name=name) for name in ("a", "a", "a (2)", "b", "a")]
    assert labels(same) == ["a", "a (2)", "a (2) (2)", "b", "a (3)"]
    looks = {(_look(place)["linestyle"], _look(place)["marker"]) for place in range(28)}
    assert len(looks) == 28 > len(COLOURS)


def test_numbers_beside_the_picture_are_the_profiles(tmp_path):
    profiles = three()
    path = plot_models(profiles, tmp_path / "a.png")
    assert path == tmp_path / "a.csv"
    table = pd.read_csv(path, float_precision="round_trip")
    pd.testing.assert_frame_equal(table, models(profiles), check_exact=True, check_dtype=False)
    for name, profile in zip(labels(profiles), profiles, strict=True):
        rows = table[table["model"] == name]
        assert rows["entropy_visual_nats"].tolist() == profile.evidence.entropy["visual"]
        assert rows["depth_percent"].iloc[[0, -1]].tolist() == [0, 100]
        assert rows["layer_kl_nats"].dropna().tolist() == profile.evidence.layer_kl


def test_a_flat_curve_has_no_deviation_to_divide_by():
    assert zscores([0.1] * 7) == [0.0] * 7
    flat = made_up(10, 2, 7, entropy={curve: [0.1] * 11 for curve in ("visual", "text", "all")})
    assert inside(drawn(draw_models, [flat, flat]))


def test_what_cannot_be_drawn_leaves_nothing(tmp_path):
    with pytest.raises(HalfVError, match="docx"):
        plot_models(three(), tmp_path / "a.docx")
    assert not list(tmp_path.iterdir())
