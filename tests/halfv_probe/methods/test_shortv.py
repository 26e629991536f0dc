"""ShortV's KL is what the model itself says when visual tokens skip one layer, and its layers have the least of it."""

import pytest

from halfv_accel import HalfVError, Plan
from halfv_probe.methods.shortv import ShortV, usual_layers
from tests.halfv_accel.miniatures import LAYERS
from tests.halfv_probe.methods.cases import mean_kl, measurements


def test_kl_of_every_layer_is_that_of_the_accelerated_model(mini):
    found = ShortV(2).find(measurements(mini), None)
    expected = [mean_kl(mini, Plan((), skip=(layer,))) for layer in range(LAYERS)]
    assert found.evidence["layer_kl"] == pytest.approx(expected, abs=2e-5)
    least = sorted(range(LAYERS), key=expected.__getitem__)[:2]
    assert found.plan == Plan((), skip=tuple(least))
    assert sum(kl > 1e-4 for kl in expected) >= LAYERS - 1  # nothing reads what the last layer makes of visual tokens


@pytest.mark.parametrize(
    ("model_type", "depth", "expected"),
    [
        ("llava", 32, 19),
        ("llava", 40, 24),
        ("llava_next", 32, 24),
        ("qwen2_5_vl", 28, 19),
        ("qwen3_vl", 36, 24),
        ("a", 1, 1),
    ],
)
def test_the_usual_number_is_the_share_of_table_10(model_type, depth, expected):
    assert usual_layers(model_type, depth) == expected


def test_it_is_the_default(mini):
    found = ShortV().find(measurements(mini), None)
    assert len(found.plan.skip) == usual_layers(mini.model().config.model_type, LAYERS)


@pytest.mark.parametrize("layers", [0, LAYERS + 1])
def test_layers_that_there_are_not(layers):
    with pytest.raises(HalfVError, match=rf"layers is {layers}: the model has 6, so give a number from 1 to 6"):
        ShortV(layers).check(LAYERS)
