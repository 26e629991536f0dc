"""InfoPrune's second stage stands where the model's own reading of its layers has settled."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_probe.methods.infoprune import MatureLayer, mature_layer
from tests.halfv_accel.miniatures import LAYERS
from tests.halfv_probe.methods.cases import measurements


def slow(mini, inputs):
    """The first boundary from which on the lens names the model's own next token, of each row."""
    model, seen = mini.model(), []
    text = model.model.language_model
    hooks = [layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0])) for layer in text.layers]
    hooks.append(text.layers[-1].register_forward_hook(lambda _m, _a, out: seen.append(out)))
    with torch.no_grad():
        model(**inputs, use_cache=False)
        tokens = torch.stack([model.lm_head(text.norm(states[:, -1])).argmax(-1) for states in seen], dim=1)
    for hook in hooks:
        hook.remove()
    return [min(b for b in range(LAYERS + 1) if len(set(row[b:])) == 1) for row in tokens.tolist()]


def test_the_layer_is_the_median_of_what_loops_find(mini):
    measure = measurements(mini)
    found = MatureLayer().find(measure, None)
    stable = [boundary for inputs in measure.prompts for boundary in slow(mini, inputs)]
    first, second = found.plan.stages
    assert second.layer == mature_layer(np.array(stable), LAYERS)
    assert found.evidence["maturity"] == [sum(s <= b for s in stable) / len(stable) for b in range(LAYERS + 1)]
    assert first.layer == 0 and second.retention < first.retention


@given(st.lists(st.integers(0, 32), min_size=1, max_size=20), st.integers(2, 32))
def test_half_of_the_samples_have_matured(stable, layers):
    layer = mature_layer(np.array(stable), layers)
    assert 1 <= layer <= layers - 1
    if 1 < layer < layers - 1:
        assert sum(s <= layer for s in stable) * 2 >= len(stable)
        assert sum(s <= layer - 1 for s in stable) * 2 <= len(stable)


@pytest.mark.parametrize(("stable", "layer"), [([0, 0], 1), ([4, 5], 5), ([32, 32], 31), ([3], 3)])
def test_cases(stable, layer):
    assert mature_layer(np.array(stable), 32) == layer
