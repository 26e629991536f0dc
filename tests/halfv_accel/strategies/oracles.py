"""Every strategy's oracle under its name, all called alike: with the strategy, a view of one row, and the budget."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from random import Random

import numpy as np
import torch

from tests.halfv_accel.strategies import (
    test_adavtp,
    test_btp,
    test_cdpruner,
    test_cls_attention,
    test_dart,
    test_divprune,
    test_erank_mixtures,
    test_fastv,
    test_fitprune,
    test_hired,
    test_holov,
    test_infoprune,
    test_prumerge,
    test_sparsevlm,
    test_uniform_grid,
    test_visionzip,
    test_vispruner,
)
from tests.halfv_accel.strategies.greedy_oracles import rows
from tests.halfv_accel.strategies.inside import top


def last_token_attention(strategy, view, kept):
    return top(view.signals["last"][0].double().tolist(), kept)


def anchor_cover(strategy, view, kept):
    if not kept:
        return []
    anchors = max(1, math.floor(kept * strategy.anchor_ratio + 1e-9))
    states = rows(view.states)
    return test_divprune.grown(states, range(len(states)), kept, last_token_attention(None, view, anchors))


def random_choice(strategy, view, kept):
    count = view.present.shape[1]
    draw = torch.Generator().manual_seed(Random(f"{strategy.seed} {count}").getrandbits(32))
    return top(torch.rand(count, generator=draw).tolist(), kept)


def hired(strategy, view, kept):
    """Frames are no crops; crops stand beside each other until their first row ends."""
    view.places = replace(view.places, part=view.places.part.masked_fill(view.places.video, 0))
    picture, part, row = (getattr(view.places, name)[0].tolist() for name in ("picture", "part", "row"))
    crops = {}
    for one, crop, line in zip(picture, part, row, strict=True):
        if crop:
            crops.setdefault(one, []).append((crop, line))
    across = {}
    for one, them in crops.items():
        first = next((i for i, (_, line) in enumerate(them) if line != them[0][1]), len(them))
        across[one] = len({crop for crop, _ in them[:first]})
    return test_hired.oracle(across, strategy.whole)(view, kept)


def sparsevlm(strategy, view, kept):
    stays, groups = test_sparsevlm.oracle(view, 0, kept, strategy)
    return stays + [group[0] for group in groups]


ORACLES = {
    "adavtp": lambda strategy, view, kept: test_adavtp.oracle_of(strategy)(view, kept),
    "anchor_cover": anchor_cover,
    "btp": lambda strategy, view, kept: test_btp.oracle(view, 0, kept, strategy),
    "cdpruner": lambda strategy, view, kept: test_cdpruner.oracle_of(strategy)(view, kept),
    "cls_attention": lambda strategy, view, kept: test_cls_attention.oracle(view, kept),
    "dart": lambda strategy, view, kept: test_dart.oracle(view, 0, kept),
    "divprune": lambda strategy, view, kept: test_divprune.diverse(view, kept),
    "erank_bat": lambda strategy, view, kept: test_erank_mixtures.oracle_of(strategy)(view, kept),
    "erank_divprune": lambda strategy, view, kept: test_erank_mixtures.oracle_of(strategy)(view, kept),
    "erank_vispruner": lambda strategy, view, kept: test_erank_mixtures.oracle_of(strategy)(view, kept),
    "farthest_points": lambda strategy, view, kept: test_divprune.farthest(view, kept),
    "fastv": lambda strategy, view, kept: test_fastv.oracle(view, 0, kept),
    "fitprune": lambda strategy, view, kept: test_fitprune.oracle(view, 0, kept),
    "hired": hired,
    "holov": lambda strategy, view, kept: test_holov.oracle(strategy)(view, kept),
    "infoprune": lambda strategy, view, kept: test_infoprune.oracle_of(strategy)(view, kept),
    "keep_none": lambda strategy, view, kept: [],
    "last_token_attention": last_token_attention,
    "prumerge": lambda strategy, view, kept: test_prumerge.oracle(view, kept),
    "random_choice": random_choice,
    "sparsevlm": sparsevlm,
    "uniform_grid": lambda strategy, view, kept: test_uniform_grid.oracle(view, kept),
    "visionzip": lambda strategy, view, kept: chain(*test_visionzip.split(view, kept, strategy.contextual)),
    "vispruner": lambda strategy, view, kept: test_vispruner.oracle(strategy)(view, kept),
}


def merged_sparsevlm(strategy, view, places):
    stays, groups = test_sparsevlm.oracle(view, 0, len(places), strategy)
    states = view.states[0].double()
    return {place: states[place] for place in stays} | {group[0]: states[group].sum(0) for group in groups}


# {place: state} from the strategy, a view of one row, and the places that are kept.
MERGED = {
    "erank_bat": lambda strategy, view, places: test_erank_mixtures.merged_of(strategy)(view, places),
    "infoprune": lambda strategy, view, places: test_infoprune.merged_of(strategy)(view, places),
    "prumerge": lambda strategy, view, places: test_prumerge.merge(strategy.neighbours)(view, places),
    "sparsevlm": merged_sparsevlm,
    "visionzip": lambda strategy, view, places: test_visionzip.merge(view, places, strategy.contextual),
}


def count_adavtp(strategy, view, least, most):
    rank = test_adavtp.slow_rank(rows(view.states)) if view.present.shape[1] else 1
    return math.floor((least + most) / 2 * rank / strategy.erank_avg)


def count_prumerge(strategy, view, least, most):
    return len(test_prumerge.outliers(test_cls_attention.scores(view))) * (1 + strategy.samples)


def count_sparsevlm(strategy, view, least, most):
    tokens, asking = view.present.shape[1], test_sparsevlm.rater_oracle(view, 0)
    attention = view.signals["text attention"][0, :, asking].double().mean(0).numpy()
    rank = int(np.linalg.matrix_rank(attention, tol=1e-5 * attention.max(initial=0))) if tokens else 0
    return tokens - math.floor((tokens - rank) * strategy.scale + 1e-9)


# Tokens that a strategy wants to keep of a row, before its bounds.
COUNTS = {"adavtp": count_adavtp, "prumerge": count_prumerge, "sparsevlm": count_sparsevlm}
