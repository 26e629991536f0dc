"""VTW's and ShortV's searches on given divergences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import HalfVError
from halfv_probe.choice.layers import ineffective_layers, withdrawal_layer

divergences = st.lists(st.floats(0, 2) | st.sampled_from([0.0, 0.003, 0.5]), min_size=1, max_size=12)


@given(divergences, st.floats(0, 2), st.integers(0, 6))
def test_withdrawal_begins_at_the_first_layer_that_is_good_enough(kl, eta, first):
    for layer in range(first, len(kl)):
        if kl[layer] <= eta:
            assert withdrawal_layer(kl, eta, first) == layer
            return
    with pytest.raises(HalfVError, match="give a larger eta"):
        withdrawal_layer(kl, eta, first)


def test_vtw_begins_at_layer_5_with_a_threshold_of_3_millinats():
    assert withdrawal_layer([0.0] * 8) == 5
    assert withdrawal_layer([1.0] * 6 + [0.0031, 0.003]) == 7


@given(divergences, st.data())
def test_the_least_effective_layers_are_skipped(kl, data):
    count = data.draw(st.integers(0, len(kl)))
    chosen = ineffective_layers(kl, count)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == count
    for inside in chosen:
        for outside in set(range(len(kl))) - set(chosen):
            assert (kl[inside], inside) < (kl[outside], outside)


@given(divergences, st.data())
def test_fewer_layers_are_some_of_more(kl, data):
    count = data.draw(st.integers(1, len(kl)))
    assert set(ineffective_layers(kl, count - 1)) < set(ineffective_layers(kl, count))


@pytest.mark.parametrize("kl", [[], [[0.1, 0.2]], [0.1, float("nan")]])
def test_only_a_list_of_numbers_is_searched(kl):
    with pytest.raises(HalfVError, match="give one number for each layer"):
        withdrawal_layer(kl)
    with pytest.raises(HalfVError, match="give one number for each layer"):
        ineffective_layers(kl, 0)


@pytest.mark.parametrize("count", [-1, 3, 1.0, True])
def test_the_number_of_layers_is_checked(count):
    with pytest.raises(HalfVError, match=f"count is {count!r}"):
        ineffective_layers(np.array([0.1, 0.2]), count)


def test_too_shallow_models_and_negative_layers_are_told():
    with pytest.raises(HalfVError, match="there are only 3 layers"):
        withdrawal_layer([0.0, 0.0, 0.0])
    with pytest.raises(HalfVError, match="first is -1"):
        withdrawal_layer([0.0], first=-1)
