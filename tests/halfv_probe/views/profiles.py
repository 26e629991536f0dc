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
