"""Spectra: a line in space for every layer, with the shares that were measured."""

import numpy as np
import pandas as pd
import pytest

from halfv_accel import HalfVError
from halfv_probe.views.spectra import draw_spectrum_lines, plot_spectrum

from .drawing import drawn, inside
from .profiles import made_up

WIDTH = (9.5, 4.8)


@pytest.mark.parametrize(("layers", "ivr", "ssr"), [(3, 1, 2), (10, 2, 7), (28, 3, 20), (80, 5, 60)])
def test_a_line_a_boundary(layers, ivr, ssr):
    profile = made_up(layers, ivr, ssr, name="/models/$x_{/" + "long" * 40)
    figure = drawn(draw_spectrum_lines, profile, inches=WIDTH)
    assert inside(figure)
    space = figure.axes[0]
    lines = {line.get_data_3d()[1][0]: line.get_data_3d() for line in space.lines[:-1]}  # the last marks k
    assert sorted(lines) == list(range(layers + 1))
    for layer, (eigenvalue, _, shares) in lines.items():
        assert list(eigenvalue) == list(range(1, 37))  # three times k
        assert list(shares) == profile.evidence.spectrum[layer][:36]
    ticks = [label.get_text() for label in space.get_yticklabels()]
    assert ticks[0] == "0" and ticks[-1] == "out" and len(ticks) <= 9


def test_the_flat_one_shows_input_output_and_where_the_plan_acts():
    profile = made_up()
    flat = drawn(draw_spectrum_lines, profile, inches=WIDTH).axes[1]
    assert [line.get_label() for line in flat.lines] == [
        "input of layer 0",
        "input of layer 3",
        "input of layer 20",
        "output",
        "behind k = 12",
    ]
    for line, layer in zip(flat.lines[:-1], (0, 3, 20, 28), strict=True):
        assert line.get_ydata() == pytest.approx(np.maximum(profile.evidence.spectrum[layer], 1e-6))


def test_numbers_beside_the_picture_are_all_eigenvalues(tmp_path):
    profile = made_up(10, 2, 7)
    table = pd.read_csv(plot_spectrum(profile, tmp_path / "a.svg"), float_precision="round_trip")
    assert table.drop(columns="boundary").to_numpy().tolist() == profile.evidence.spectrum


@pytest.mark.parametrize("spectrum", [[], [[0.5], []] + [[0.5]] * 9])
def test_without_spectrum_there_is_no_picture(tmp_path, spectrum):
    with pytest.raises(HalfVError, match="no spectrum: calibrate again"):
        plot_spectrum(made_up(10, 2, 7, spectrum=spectrum), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
