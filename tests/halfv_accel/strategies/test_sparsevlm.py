"""SparseVLM against its equations, and the laws of its clusters."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from halfv_accel import HalfVError
from halfv_accel.strategies import Adaptive, Merging, Needs, SparseVLM, resolve
from halfv_accel.strategies.shared.density_peaks import density_peaks
from halfv_accel.strategies.sparsevlm import attention_rank, parts, raters
from tests.halfv_accel.strategies.inside import DECODER, FreeSignals, holds, same_flops, shares, top
from tests.halfv_accel.strategies.views import random_view

MANY = [SparseVLM(), SparseVLM(tau=1, theta=0.8), SparseVLM(tau=0.7, theta=1, combined="mean"), SparseVLM(tau=0)]


def wide(seed, **parameters):
    """Rows with enough tokens for several clusters."""
    return random_view(counts=(40, 31, 0, 22), texts=(5, 3, 4, 6), seed=seed, **parameters)


def rater_oracle(view, row):
    tokens, words = int(view.present[row].sum()), int(view.text_present[row].sum())
    visual, text = (states[row].double().tolist() for states in view.prompt_states)
    relevance = [0.0] * words
    for token in range(tokens):
        weights = [math.exp(np.dot(visual[token], text[word])) for word in range(words)]
        for word in range(words):
            relevance[word] += weights[word] / sum(weights) / tokens
    return [word for word in range(words) if relevance[word] >= sum(relevance) / words]


def peaks_oracle(points, clusters):
    """Clusters of points, each a list of indices."""
    n, width = len(points), len(points[0])
    d = [[math.dist(a, b) / math.sqrt(width) for b in points] for a in points]
    density = [math.exp(-sum(sorted(x * x for x in row)[:clusters]) / clusters) for row in d]
    score = []
    for i in range(n):
        denser = [d[i][j] for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        score.append(density[i] * (min(denser) if denser else max(d[i])))
    centres = sorted(top(score, clusters))
    members = {centre: [centre] for centre in centres}
    for i in range(n):
        if i not in members:
            members[min(centres, key=lambda c: d[i][c])].append(i)
    return list(members.values())


def oracle(view, row, budget, method):
    """(tokens that stay as they are, clusters of tokens with the highest-rated first)."""
    tokens = int(view.present[row].sum())
    asking = rater_oracle(view, row)
    attention = view.signals["text attention"][row].double()  # [heads, T, V]
    scores = [float(attention[:, asking, token].mean()) for token in range(tokens)]
    ranked = top(scores, tokens)
    for stays in range(budget, -1, -1):
        recycled = math.floor((tokens - stays) * method.tau + 1e-9)
        clusters = min(recycled, math.floor(recycled * method.theta + 1e-9) + 1)
        if stays + clusters <= budget:
            break
    clusters = budget - stays
    pool = ranked[stays : stays + recycled]
    groups = peaks_oracle(view.states[row, pool].double().tolist(), clusters) if clusters else []
    return ranked[:stays], [[pool[i] for i in sorted(group)] for group in groups]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [0, 0.1, 0.3, 0.6, 0.9, 1])
@pytest.mark.parametrize("method", MANY, ids=str)
def test_rating_and_recycling(seed, ratio, method):
    view = wide(seed)
    budget = shares(view, ratio)
    if ratio == 0.1:
        budget[0] = 37  # few of the longest row are recycled, and many of the others
    chosen = holds(method, view, budget)
    merged = method.merge(view, chosen)
    for row, kept in enumerate(budget.tolist()):
        stays, groups = oracle(view, row, kept, method)
        assert chosen[row].nonzero()[:, 0].tolist() == sorted(stays + [group[0] for group in groups])
        assert torch.equal(merged[row, stays], view.states[row, stays])
        for group in groups:
            total = view.states[row, group].double().sum(0) / (len(group) if method.combined == "mean" else 1)
            torch.testing.assert_close(merged[row, group[0]].double(), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", MANY, ids=str)
def test_merging_a_row_alone_is_merging_it_in_a_batch(method):
    view = wide(7)
    chosen = method.select(view, shares(view, 0.5))
    merged = method.merge(view, chosen)
    for row in range(len(chosen)):
        alone = view.row(row)
        kept = chosen[row : row + 1, : alone.present.shape[1]]
        torch.testing.assert_close(method.merge(alone, kept)[kept], merged[row, chosen[row]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_nothing_is_dropped_nothing_changes(dtype):
    view = wide(2)
    view.states = view.states.to(dtype)
    budget = view.present.sum(1)
    budget[1] = 9
    method = SparseVLM(tau=1)
    merged = method.merge(view, method.select(view, budget))
    assert merged.dtype == dtype
    same = (merged == view.states).all(-1).all(-1)
    assert same.tolist() == [True, False, True, True]


@given(st.integers(0, 60), st.data(), st.floats(0, 1), st.floats(0, 1))
def test_the_budget_is_met_by_tokens_and_clusters(tokens, data, tau, theta):
    budget = data.draw(st.integers(0, tokens))
    stays, recycled = (int(part) for part in parts(torch.tensor([tokens]), torch.tensor([budget]), tau, theta))
    assert recycled == (math.floor((tokens - stays) * tau + 1e-9) if stays < budget else 0)
    assert 0 <= stays <= budget
    if stays < budget:
        clusters = min(recycled, math.floor(recycled * theta + 1e-9) + 1)
        assert budget - stays == clusters or (stays == 0 and budget < clusters)


@pytest.mark.parametrize("seed", range(6))
def test_raters_are_the_words_about_the_picture(seed):
    view = random_view(seed=seed)
    chosen = raters(view)
    for row in (0, 1, 3):
        assert chosen[row].nonzero()[:, 0].tolist() == rater_oracle(view, row)
    assert not (chosen & ~view.text_present).any()


def test_where_all_words_are_alike_all_rate():
    view = random_view(texts=(5, 3, 4, 1))
    _, text = view.prompt_states
    text[:] = text[:1, :1]
    assert torch.equal(raters(view), view.text_present)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_rank_decides_how_many(seed, coarse):
    view = wide(seed, coarse=coarse)
    each = view.signals["text attention"]
    each[0, :, 1:] = each[0, :, :1]  # all words of row 0 look alike
    there = view.present.sum(1)
    found = SparseVLM(scale=0.4).count(view, torch.zeros_like(there), there)
    for row in (0, 1, 3):
        asking, tokens = rater_oracle(view, row), int(there[row])
        rank = int(np.linalg.matrix_rank(each[row, :, asking, :tokens].double().mean(0).numpy(), tol=1e-5))
        assert rank == (1 if row == 0 else len(asking))
        assert attention_rank(view, raters(view), "previous")[row] == rank
        assert found[row] == tokens - math.floor((tokens - rank) * 0.4 + 1e-9)
    assert found[2] == 0


def test_the_count_stays_within_the_bounds():
    view = wide(0)
    there = view.present.sum(1)
    for least, most in ((there, there), (there // 2, there // 2), (there // 4, there // 3)):
        found = SparseVLM(scale=0.5).count(view, least, most)
        assert ((found >= least) & (found <= most)).all()
        assert found.dtype == torch.long


@pytest.mark.parametrize("words", [1, 7])
def test_it_states_what_its_count_costs(words):
    view, sizes = random_view(counts=(12,), texts=(words,)), FreeSignals(DECODER, 12, 9, words)
    with FlopCounterMode(display=False) as counter:
        SparseVLM().count(view, torch.tensor([2]), torch.tensor([9]))
    assert SparseVLM().count_flops(sizes) == counter.get_total_flops() > 0


@given(st.integers(1, 9), st.integers(0, 99), st.data())
def test_clusters_part_the_points(count, seed, data):
    clusters = data.draw(st.integers(1, count))
    points = torch.randn(1, count + 2, 6, generator=torch.Generator().manual_seed(seed))
    present = torch.arange(count + 2)[None] < count
    first = density_peaks(points, present, torch.tensor([clusters]))[0]
    assert len(set(first[:count].tolist())) == clusters
    assert first[count:].tolist() == [count, count + 1]
    assert first[first].tolist() == first.tolist()
    assert (first <= torch.arange(count + 2)).all()


def test_two_clouds_are_two_clusters():
    near = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) / 50
    points = torch.cat([near[:3], near[3:] + 1000])[[0, 3, 1, 4, 5, 2]]  # large: their densities underflow
    found = density_peaks(points[None], torch.ones(1, 6).bool(), torch.tensor([2]))
    assert found.tolist() == [[0, 1, 0, 1, 1, 0]]


def test_points_that_are_all_alike_are_still_parted():
    found = density_peaks(torch.ones(1, 5, 3), torch.ones(1, 5).bool(), torch.tensor([3]))
    assert len(set(found[0].tolist())) == 3


@pytest.mark.parametrize("kept", [0, 1, 9, 20, 39, 40])
@pytest.mark.parametrize("method", MANY, ids=str)
def test_it_states_its_operations(kept, method):
    assert same_flops(method, random_view(counts=(40,), texts=(5,)), kept) > 0


def test_names_needs_and_kinds():
    method = resolve("sparsevlm")
    assert method == SparseVLM(scale=0.5, tau=0.3, theta=0.1, combined="sum", scored_by="previous")
    assert isinstance(method, Merging)
    assert isinstance(method, Adaptive)
    assert method.needs == Needs(before=True, prompt=True)
    assert SparseVLM(scored_by="own").needs == Needs(prompt=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", 1.1), ("tau", -0.1), ("theta", "x"), ("tau", True), ("combined", "max"), ("scored_by", "next")],
)
def test_parameters_are_checked(name, value):
    with pytest.raises(HalfVError, match=f"{name} is {value!r}"):
        SparseVLM(**{name: value})
