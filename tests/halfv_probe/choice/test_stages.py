import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel.evidence import NullModel
from halfv_probe.choice.stages import detect_stages

from .published import LLAVA, QWEN


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


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("share", "mode"), [(1e-2, "freeze"), (0.5, "sparse")])
def test_mode_follows_what_deep_layers_do_beside_those_of_stage_ii(share, mode, unit):
    rng = np.random.default_rng(1)
    modes = []
    for _ in range(100):
        entropy, onset, valley = curve(rng, 28)
        kl = rng.lognormal(0, 0.5, 28) * np.where(np.arange(28) < valley, 1.0, share)
        kl[:onset] *= 1e4  # alignment
        modes.append(detect_stages(entropy, unit * kl).ssr_mode)
    assert modes.count(mode) >= 98


@pytest.mark.parametrize("valley", [14, 20, 24, 25])
@pytest.mark.parametrize(("share", "mode"), [(1e-3, "freeze"), (0.5, "sparse")])
def test_the_last_layer_has_no_say_in_the_mode(share, mode, valley):
    """Its visual output is read by nothing, so its KL is 0 in every model."""
    entropy = 3 - np.clip(np.arange(29) - 2, 0, valley - 2) / (valley - 2)
    kl = np.array([1e3] * 2 + [1.0] * (valley - 2) + [share] * (28 - valley))
    for last in (0.0, 1e9):
        kl[-1] = last
        assert detect_stages(entropy, kl).ssr_mode == mode


@pytest.mark.parametrize(("suffix", "mode"), [(1e-4, "freeze"), (0.3, "sparse")])
def test_what_freezing_costs_has_the_word_where_it_was_measured(suffix, mode):
    entropy = 3 - np.clip(np.arange(29) - 2, 0, 18) / 18
    kl = np.array([1e3] * 2 + [1.0] * 26)
    suffixes = [5.0] * 20 + [5.0 * suffix] * 8
    assert detect_stages(entropy, kl, suffix_redundancy=suffixes).ssr_mode == mode


@pytest.mark.parametrize("published", [LLAVA, QWEN], ids=["llava-1.5-7b", "qwen2.5-vl-7b"])
@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_published_curves_have_the_stages_of_table_9(published, scale, shift):
    """At any scale: z-scores, nats and bits are the same curve."""
    entropy = scale * (np.array(published.visual) + shift)
    text = {} if published.text is None else dict(text_entropy=scale * np.array(published.text))
    found = detect_stages(entropy, scale * np.array(published.layer_kl), **text)
    assert found.stable
    assert abs(found.ivr_layer - published.ivr) <= 1
    assert abs(found.ssr_layer - published.ssr) <= 2
    assert found.ssr_mode == published.mode
    assert published.ivr in found.ivr_tried
    assert published.ssr in found.ssr_tried and published.ssr in found.near_saturation


@pytest.mark.parametrize("published", [LLAVA, QWEN], ids=["llava-1.5-7b", "qwen2.5-vl-7b"])
def test_stages_of_published_curves_survive_what_was_misread(published):
    """Noise as large as the reading is coarse."""
    rng = np.random.default_rng(0)
    coarse = 0.02 if published is LLAVA else 0.04
    for _ in range(50):
        entropy = np.array(published.visual) + rng.uniform(-coarse, coarse, len(published.visual))
        kl = np.array(published.layer_kl) * rng.uniform(0.9, 1.1, len(published.layer_kl))
        found = detect_stages(entropy, kl)
        assert found.stable and found.ssr_mode == published.mode
        assert abs(found.ssr_layer - published.ssr) <= 2 and published.ivr in found.ivr_tried


@given(
    seed=st.integers(0, 999),
    scale=st.floats(0.05, 20),
    shift=st.floats(-5, 5),
    unit=st.floats(1e-4, 1e4),
)
def test_units_do_not_matter(seed, scale, shift, unit):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(10, 41))
    entropy, *_ = curve(rng, layers)
    kl, text = rng.lognormal(0, 2, layers) * np.geomspace(1e3, 1e-3, layers), rng.uniform(0, 2, layers + 1)
    one = detect_stages(entropy, kl, text_entropy=text)
    other = detect_stages(scale * entropy + shift, unit * kl, text_entropy=scale * text)
    assert (one.ivr_layer, one.ssr_layer, one.ssr_mode, one.stable) == (
        other.ivr_layer,
        other.ssr_layer,
        other.ssr_mode,
        other.stable,
    )
    assert (one.ivr_tried, one.ssr_tried) == (other.ivr_tried, other.ssr_tried)


def test_every_witness_has_its_layers_tried():
    entropy = 3 - np.clip(np.arange(29) - 9, 0, 11) / 11  # plateau up to 9, valley at 20
    kl = np.array([50.0, 20.0, *[0.1] * 18, *[1e-4] * 8])
    suffix = [9.0] * 12 + [0.01] * 16
    maturity = [0.0] * 17 + [0.95] * 12
    flow = [1.0] * 23 + [0.01] * 5
    attention = [0.8] * 4 + [0.1] * 24
    text = [2.0] * 6 + [0.2] * 23
    found = detect_stages(
        entropy,
        kl,
        text_entropy=text,
        attention_to_visual=attention,
        suffix_redundancy=suffix,
        maturity=maturity,
        flow=flow,
    )
    named = {choice: {each.curve: each.layer for each in seen} for choice, seen in found.witnesses.items()}
    assert named["ivr"] == {"visual entropy": 9, "text entropy": 6, "attention": 4, "layer KL": 2}
    assert named["ssr"] == {"visual entropy": 20, "suffix KL": 12, "maturity": 17, "flow": 23}
    assert not found.agree("ivr") and not found.agree("ssr")
    assert {1, 2, 3, 4, 5, 6, 7, 8, 9, 10} == set(found.ivr_tried)
    assert found.ivr_layer == 4  # the lower middle one
    assert set(range(12, 27)) <= set(found.ssr_tried)


def test_a_fall_must_exceed_its_spread_over_samples():
    rng = np.random.default_rng(0)
    clean = 2.5 - 0.2 * np.clip(np.arange(11) - 3, 0, 4) / 4
    quiet = clean + rng.normal(0, 0.05, (30, 11))
    loud = quiet.mean(axis=0) + rng.normal(0, 1.5, (30, 1)) * np.clip(np.arange(11) - 3, 0, 4)
    loud += quiet.mean(axis=0) - loud.mean(axis=0)  # the same mean curve
    assert detect_stages(quiet.mean(axis=0), samples=quiet).stable
    assert not detect_stages(loud.mean(axis=0), samples=loud).stable


@pytest.mark.parametrize(("null_kl", "stable"), [([1.0] * 10, True), ([90.0] * 5 + [1.0] * 5, False)])
def test_a_null_model_is_the_yardstick_of_contrast(null_kl, stable):
    """Early layers 300 times as heavy as late ones say much beside a flat null model, little beside a steep one."""
    entropy = 2.5 - np.clip(np.arange(11) - 3, 0, 4) / 4
    null = NullModel(
        seed=0, samples=1, entropy=dict(visual=[1.0] * 11, text=[1.0] * 11, all=[1.0] * 11), layer_kl=null_kl
    )
    found = detect_stages(entropy, [300.0] * 5 + [1.0] * 5, null=null)
    assert found.stable == stable
    assert stable or "random weights" in found.reasons["ivr"]


def test_a_rise_on_the_way_to_the_plateau_belongs_to_alignment():
    entropy = [1.8, 1.8, 2.0, 2.5, 2.5, 2.2, 1.9, 1.6, 1.6, 1.6, 1.6, 1.6]
    found = detect_stages(entropy)
    assert (found.stable, found.ivr_layer, found.ssr_layer) == (True, 4, 7)


def test_the_onset_is_never_on_the_way_up():
    entropy = [1.68, 1.76, 2.07, 2.58, 2.49, 2.48, 2.46, 2.4, 2.41, 2.4, 2.43]
    found = detect_stages(entropy, [0.5] * 4 + [5e-4] * 6)
    assert (found.stable, found.ivr_layer) == (True, 3)


@pytest.mark.parametrize(("kl", "stable"), [(1e-1, True), (1e-3, False)])
def test_a_fall_counts_only_where_early_visual_layers_matter_far_more_than_late_ones(kl, stable):
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
