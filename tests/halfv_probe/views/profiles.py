"""Made-up profiles to draw: any depth, any stages, with everything measured or as version 1.0 left it."""

import math
import random
from itertools import product

from halfv_accel import Profile

CURVES = ("visual", "text", "all")


def made_up(layers=28, ivr=3, ssr=20, mode="sparse", *, name="someone/some-model", old=False, **evidence):
    """A profile whose visual entropy is high up to `ivr` and lowest at `ssr`; `evidence` replaces fields of it."""
    rng = random.Random(0)
    visual = [
        2.1 + 1.3 * max(0, min(1, (ssr - b) / max(ssr - ivr, 1))) + 0.02 * rng.random() for b in range(layers + 1)
    ]
    text = [1.2 + 3 * math.exp(-b / 3) for b in range(layers + 1)]
    kl = [0.5 * math.exp(-4 * layer / layers) * (0.5 + rng.random()) for layer in range(layers - 1)] + [0.0]
    measured = dict(
        k=12,
        entropy=dict(visual=visual, text=text, all=[(v + t) / 2 for v, t in zip(visual, text, strict=True)]),
        layer_kl=kl,
        choices=dict(ivr="entropy falls behind it", ssr="the valley", mode="deep layers are active"),
        agreement=0.97,
    )
    if not old:
        measured |= _new_in_1_1(layers, ivr, ssr, mode, visual, kl, rng)
        measured |= _new_in_1_3(layers, ivr, ssr, mode, measured, rng)
    return Profile.model_validate(
        dict(
            schema_version="1.0" if old else "1.3",
            model=dict(
                id=name,
                architecture="Qwen2_5_VLForConditionalGeneration",
                num_layers=layers,
                hidden_size=64,
                fingerprint="0123456789abcdef",
            ),
            ivr=dict(layer=ivr, retention=0.25, anchor_ratio=0.1),
            ssr=dict(
                mode=mode,
                layer=None if mode == "none" else ssr,
                retention=0.05 if mode == "sparse" else None,
            ),
            calibration=dict(
                data="default", data_fingerprint="fedcba", samples=100, seed=7, versions={"torch": "2.13"}
            ),
            evidence=measured | evidence,
        )
    )


def _new_in_1_1(layers, ivr, ssr, mode, visual, kl, rng):
    plans = product(range(1, layers, max(1, layers // 6)), (0.5, 0.25, 0.125))
    utility = [
        dict(
            layer=layer,
            retention=share,
            drop=(drop := round((1 - share) * math.exp(-6 * layer / layers), 2)),
            kl=drop / 2,
            flops_saved=(saved := (1 - share) * (1 - layer / layers)),
            utility=drop / (saved + 0.01),
        )
        for layer, share in plans
    ]
    own = dict(ivr_layer=ivr, ivr_retention=0.25, anchor_ratio=0.1, ssr_mode=mode)
    own |= dict(ssr_layer=None if mode == "none" else ssr, ssr_retention=0.05 if mode == "sparse" else None)
    trials = [own | dict(flops=0.31, drop=0.01)] + [
        dict(ivr_layer=cell["layer"], ivr_retention=cell["retention"], anchor_ratio=0.2)
        | dict(flops=1 - 0.9 * cell["flops_saved"], drop=cell["drop"])
        for cell in utility
    ]
    common = lambda trial: dict(agreement=1 - trial["drop"], kl=trial["drop"], samples=100)  # noqa: E731
    rows = [[math.exp(-i / (2 + entropy)) for i in range(64)] for entropy in visual]
    spread = {curve: [0.05 + 0.05 * rng.random() for _ in range(layers + 1)] for curve in CURVES}
    return dict(
        entropy_std=spread,
        effective_rank=[math.exp(entropy) for entropy in visual],
        spectrum=[[value / sum(row) for value in row] for row in rows],
        suffix_kl=[1.5 * sum(kl[layer:]) for layer in range(layers)],
        suffix_agreement=[layer / (layers - 1) for layer in range(layers)],
        utility=utility,
        trials=sorted((trial | common(trial) for trial in trials), key=lambda trial: trial["flops"]),
        votes=dict(
            ivr={str(ivr): 0.93, str(ivr + 1): 0.07}, ssr={str(own["ssr_layer"]): 1.0}, mode={mode: 0.9, "none": 0.1}
        ),
        curve_only=dict(ivr=ivr, ssr=max(ivr + 1, ssr - 1)),
        goal=dict(kind="max_drop", value=0.05, confidence=0.95),
        flops=0.31,
        drop=0.01,
        drop_bound=0.047,
        untouched_accuracy=0.88,
    )


def _new_in_1_3(layers, ivr, ssr, mode, measured, rng):
    """Curves for other k, what each curve names, the second stage alone, a null model, and other conditions."""
    entropy = measured["entropy"]
    by_k = {
        str(k): {
            curve: dict(mean=[value * math.log(k) / 4 for value in entropy[curve]], std=measured["entropy_std"][curve])
            for curve in CURVES
        }
        for k in (2, 4, 8, 16)
    }
    return dict(
        entropy_by_k=by_k,
        attention_to_visual=[0.05 + 0.6 * math.exp(-layer / max(ivr, 1)) for layer in range(layers)],
        maturity=[min(1.0, max(0.0, (b - ssr + 2) / max(layers - ssr, 1))) for b in range(layers + 1)],
        null=dict(
            seed=0,
            samples=4,
            entropy={curve: [2.3 + shift + 0.05 * rng.random() for _ in range(layers + 1)] for curve, shift in SHIFTS},
            layer_kl=[1e-5 * (1 + rng.random()) for _ in range(layers - 1)] + [0.0],
        ),
        witnesses=_witnesses(ivr, ssr, layers),
        isolated=[
            dict(mode=way, layer=layer, flops=1 - cost * (1 - layer / layers), kl=3 * drop, samples=100)
            | dict(agreement=1 - drop, drop=drop)
            for way, cost, worst in (("freeze", 0.7, 0.3), ("sparse", 0.8, 0.2), ("withdraw", 0.9, 0.8))
            for layer in range(1, layers, max(1, layers // 6))
            for drop in [worst * math.exp(-4 * layer / layers)]
        ],
        verdicts=dict(
            ivr=dict(curve=str(ivr), kl=None, trials=str(ivr), agree=True),
            ssr=dict(curve=str(ssr), kl=str(max(1, ssr - 5)), trials=None if mode == "none" else str(ssr), agree=False),
            mode=dict(curve=None, kl="sparse", trials=mode, agree=mode == "sparse"),
        ),
        holds=_holds(ivr, ssr, mode),
        utility_by_stage=[
            dict(stage="I", layers=list(range(1, ivr)), saved=0.468, utility=0.87),
            dict(stage="II start", layers=[ivr], saved=0.415, utility=0.21),
            dict(stage="II middle", layers=[(ivr + ssr) // 2], saved=0.378, utility=0.29),
            dict(stage="III", layers=list(range(ssr, layers)), saved=0.224, utility=0.65),
        ],
    )


SHIFTS = (("visual", 0.0), ("text", 0.3), ("all", 0.5))


def _witnesses(ivr, ssr, layers):
    """For Stage II they agree, for Stage III they do not, and one in each names no layer."""
    return dict(
        ivr=[
            dict(curve="visual entropy", layer=ivr, says="falls behind this layer"),
            dict(curve="text entropy", layer=min(ivr + 1, layers - 1), says="has fallen by 90% here"),
            dict(curve="attention", layer=ivr, says="half of the attention to visual tokens is gone"),
            dict(curve="flow", layer=None, says="no layer at which tokens begin to look far"),
        ],
        ssr=[
            dict(curve="visual entropy", layer=ssr, says="is lowest before this layer"),
            dict(curve="layer KL", layer=max(1, ssr - 5), says="stays below 0.001 nats from here on"),
            dict(curve="suffix KL", layer=max(1, ssr - 3), says="stays below 0.01 nats from here on"),
            dict(curve="maturity", layer=None, says="half of the samples are ripe at no layer before the last"),
        ],
    )


def _holds(ivr, ssr, mode):
    """Ten conditions, of which one flips L_IVR, one both layers, and one the mode and the plan."""
    own = dict(stable=True, ivr=ivr, ssr=ssr, mode=mode, plan=f"25% from {ivr}, {mode} from {ssr}")
    conditions = [
        ("k", "k = 2", dict(ivr=ivr + 4, flips=["ivr"])),
        ("k", "k = 4", {}),
        ("k", "k = 16", {}),
        ("thresholds", "onset at 5% of the fall", {}),
        ("thresholds", "onset at 20% of the fall", {}),
        ("samples", "10 samples", dict(ivr=ivr + 5, ssr=ssr + 3, flips=["ivr", "ssr"])),
        ("samples", "50 samples", {}),
        ("halves", "odd samples", {}),
        ("halves", "even samples", dict(mode="none", plan=f"25% from {ivr}", flips=["mode", "plan"])),
        ("task", "counting", {}),
    ]
    return [own | dict(about=about, condition=condition) | change for about, condition, change in conditions]
