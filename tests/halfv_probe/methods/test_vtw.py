"""VTW's KL is what the model itself says with all visual tokens withdrawn, and K is the first layer that it allows."""

import pytest

from halfv_accel import Plan, Stage
from halfv_probe.methods.vtw import VTW
from tests.halfv_accel.miniatures import LAYERS
from tests.halfv_probe.methods.cases import mean_kl, measurements


def withdrawn(layer):
    return Plan((Stage("vtw", layer, "keep_none", 0.0),))


def test_kl_of_every_layer_is_that_of_the_accelerated_model(mini):
    found = VTW(1e9).find(measurements(mini), None)
    expected = [mean_kl(mini, withdrawn(layer)) for layer in range(LAYERS)]
    assert found.measured["withdrawal_kl"] == pytest.approx(expected, abs=2e-5)
    assert min(expected) > 1e-4  # else nothing was shown


def test_the_first_layer_that_is_good_enough_is_taken(mini):
    kl = VTW().find(measurements(mini), None).measured["withdrawal_kl"]
    eta = sorted(kl[1:])[1]  # two layers from 1 on are good enough
    found = VTW(eta).find(measurements(mini), None)
    first = next(layer for layer in range(1, LAYERS) if kl[layer] <= eta)
    assert found.plan == withdrawn(first)
    assert "the first layer, from 1 on" in found.why


def test_where_no_layer_is_good_enough_half_of_the_depth_is_taken_and_it_says_so(mini):
    found = VTW(1e-9).find(measurements(mini), None)
    assert found.plan == withdrawn(LAYERS // 2)
    assert "no KL is at most 1e-09" in found.why and found.why.endswith("half of the depth")
