"""Curves for several k: each panel holds those of its k, and a k that was not measured is refused."""

import pandas as pd
import pytest

from halfv_accel import HalfVError
from halfv_probe.views.many_k import draw_many_k, plot_many_k
from halfv_probe.views.plots import CURVES

from .drawing import drawn, inside
from .profiles import made_up


def curve_of(axes, group):
    return next(line for line in axes.lines if line.get_label() == f"{group} tokens").get_ydata().tolist()


def test_a_panel_a_k():
    profile = made_up()
    figure = drawn(draw_many_k, profile, [2, 4, 8, 16])
    assert inside(figure)
    for k, axes in zip((2, 4, 8, 16), figure.axes, strict=True):
        assert axes.get_title(loc="left").startswith(f"k = {k}: ")
        for group in CURVES:
            assert curve_of(axes, group) == profile.evidence.entropy_by_k[str(k)][group].mean


@pytest.mark.parametrize("ks", [[12], [2, 12], [2, 4, 12], [2, 4, 8, 12, 16]])
def test_any_number_of_panels_fits(ks):
    figure = drawn(
        draw_many_k,
        made_up(name="/models/$x_{/" + "long" * 40),
        ks,
        "zscore",
    )
    assert inside(figure)
    own = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("k = 12:"))
    assert sum(line.get_label() == "random weights" for line in own.lines) == 3
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == len(ks)
    assert all(axes.get_xlabel() for axes in shown[-2:])  # nothing stands below these


def test_the_title_names_the_valley():
    valley = {curve: dict(mean=[3.0, 2.0, 1.0, 2.0, 2.0], std=[0.0] * 5) for curve in CURVES}
    rising = {curve: dict(mean=[3.0, 2.0, 1.0, 2.0, 0.5], std=[0.0] * 5) for curve in CURVES}
    figure = drawn(draw_many_k, made_up(4, 1, 2, entropy_by_k={"3": valley, "5": rising}), [3, 5])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "k = 3: visual entropy lowest before layer 2 (50%)",
        "k = 5: visual entropy lowest at the output",
    ]


def test_numbers_beside_the_picture_are_of_these_k(tmp_path):
    profile = made_up()
    table = pd.read_csv(plot_many_k(profile, [16, 2, 16], tmp_path / "a.png"), float_precision="round_trip")
    assert table["k"].value_counts().to_dict() == {2: 29, 16: 29}
    for k in (2, 16):
        expected = profile.evidence.entropy_by_k[str(k)]["text"]
        rows = table[table["k"] == k]
        assert rows["entropy_text_nats"].tolist() == expected.mean
        assert rows["entropy_text_std_nats"].tolist() == expected.std


@pytest.mark.parametrize(("old", "there"), [(False, "2, 4, 8, 12, 16"), (True, "12")])
def test_a_k_that_was_not_measured_is_refused_with_those_that_were(tmp_path, old, there):
    with pytest.raises(HalfVError, match=f"k = 3, 5, only for {there}: .*calibrate again"):
        plot_many_k(made_up(old=old), [12, 3, 5], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
