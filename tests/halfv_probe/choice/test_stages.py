import numpy as np
import pytest

from halfv_probe.choice.stages import detect_stages


def curve(rng, layers):
    """Plateau, fall, rise, with noise; returns the curve, the last plateau point and the valley."""
    onset = int(rng.integers(1, layers // 6 + 1))
    valley = int(rng.integers(onset + layers // 4, int(0.8 * layers) + 1))
    fall, slope, noise = rng.uniform(0.5, 1.5), rng.uniform(0.005, 0.03), rng.uniform(0.01, 0.03)
    x = np.arange(layers + 1)
    clean = 3 - fall * np.clip(x - onset, 0, valley - onset) / (valley - onset) + slope * np.clip(x - valley, 0, None)
    return clean + rng.normal(0, noise, layers + 1), onset, valley


def test_both_turns_are_found_within_one_layer():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        entropy, onset, valley = curve(rng, int(rng.integers(20, 49)))
        found = detect_stages(entropy)
        hits.append(found.stable and abs(found.ivr_layer - onset) <= 1 and abs(found.ssr_layer - valley) <= 1)
    assert np.mean(hits) >= 0.95


@pytest.mark.parametrize(("kl", "mode"), [(5e-5, "freeze"), (3e-2, "sparse")])
def test_mode_follows_the_redundancy_of_deep_layers(kl, mode):
    rng = np.random.default_rng(1)
    modes = []
    for _ in range(100):
        entropy, *_ = curve(rng, 28)
        modes.append(detect_stages(entropy, kl * rng.lognormal(0, 0.5, 28)).ssr_mode)
    assert modes.count(mode) >= 98


@pytest.mark.parametrize("valley", [14, 20, 24, 26, 27])
@pytest.mark.parametrize(("kl", "mode"), [(5e-5, "freeze"), (3e-2, "sparse")])
def test_the_last_layer_has_no_say_in_the_mode(kl, mode, valley):
    """Its visual output is read by nothing, so its KL is 0 in every model."""
    entropy = 3 - np.clip(np.arange(29) - 2, 0, valley - 2) / (valley - 2)
    assert detect_stages(entropy, [kl] * 27 + [0.0]).ssr_mode == mode


def test_a_rise_on_the_way_to_the_plateau_belongs_to_alignment():
    entropy = [1.8, 1.8, 2.0, 2.5, 2.5, 2.2, 1.9, 1.6, 1.6, 1.6, 1.6, 1.6]
    found = detect_stages(entropy)
    assert (found.stable, found.ivr_layer, found.ssr_layer) == (True, 4, 7)


def test_the_onset_is_never_on_the_way_up():
    entropy = [1.68, 1.76, 2.07, 2.58, 2.49, 2.48, 2.46, 2.4, 2.41, 2.4, 2.43]
    found = detect_stages(entropy, [0.5] * 4 + [5e-4] * 6)
    assert (found.stable, found.ivr_layer) == (True, 3)


@pytest.mark.parametrize(("kl", "stable"), [(1e-1, True), (1e-3, False)])
def test_a_small_fall_counts_only_where_visual_layers_matter(kl, stable):
    entropy = 2.5 - 0.2 * np.clip(np.arange(11) - 3, 0, 4) / 4
    assert detect_stages(entropy, [kl] * 5 + [1e-4] * 5).stable == stable


@pytest.mark.parametrize(
    "entropy",
    [np.full(29, 2.0), np.linspace(2, 3, 29), 2 + np.random.default_rng(0).normal(0, 0.05, 29)],
    ids=["constant", "rising", "noise"],
)
def test_a_curve_without_stages_is_said_to_have_none(entropy):
    found = detect_stages(entropy, np.full(28, 1e-2))
    assert not found.stable
    assert found.ssr_mode == "none"
    assert 1 <= found.ivr_layer < 28


@pytest.mark.parametrize(
    ("entropy", "kl"), [([1, 2, 3], None), ([1.0] * 9, [1.0] * 9), ([1.0] * 8 + [np.nan], None), ([[1.0] * 9], None)]
)
def test_wrong_lengths_and_values_are_refused(entropy, kl):
    with pytest.raises(ValueError):
        detect_stages(entropy, kl)


def test_chosen_layers_are_always_usable():
    rng = np.random.default_rng(2)
    for _ in range(200):
        layers = int(rng.integers(4, 40))
        found = detect_stages(np.cumsum(rng.normal(0, 0.2, layers + 1)), rng.lognormal(-5, 2, layers))
        assert 1 <= found.ivr_layer < found.ssr_layer < layers or found.ssr_mode == "none"
