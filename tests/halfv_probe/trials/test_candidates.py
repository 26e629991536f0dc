"""Every candidate is a plan that a model of the depth can run, comes once, and costs what it leaves of the model."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_accel.flops import Decoder, prefill_flops, selection_flops
from halfv_probe.trials.candidates import (
    PAPER,
    RETENTIONS,
    SPARSE,
    Candidate,
    all_candidates,
    alone_candidates,
    paper_candidates,
    utility_candidates,
)

depths = st.integers(4, 40)
LLAVA = Decoder(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128)
QWEN = Decoder(layers=28, hidden=3584, intermediate=18944, heads=28, kv_heads=4, head_dim=128)


def everything(depth):
    return {
        "paper": [c for mode in PAPER for c in paper_candidates(depth, range(1, depth), range(1, depth), mode)],
        "all": list(all_candidates(depth)),
        "utility": list(utility_candidates(depth)),
    }


@given(depth=depths)
@settings(max_examples=10)
def test_every_candidate_is_a_plan_for_the_depth_and_comes_once(depth):
    for candidates in everything(depth).values():
        assert len(set(candidates)) == len(candidates)
        plans = [candidate.plan() for candidate in candidates]
        assert len(set(plans)) == len(plans)
        for plan in plans:
            plan.check_depth(depth)


@given(depth=depths)
@settings(max_examples=20)
def test_stages_follow_each_other_and_keep_ever_fewer_tokens(depth):
    for candidates in everything(depth).values():
        for candidate in candidates:
            assert 1 <= candidate.ivr_layer < depth
            assert 0 < candidate.ivr_retention <= 1
            if candidate.ssr_mode == "freeze":
                assert candidate.ivr_layer <= candidate.ssr_layer < depth - 1  # to freeze the last layer does nothing
            elif candidate.ssr_mode == "sparse":
                assert candidate.ivr_layer < candidate.ssr_layer < depth
                assert candidate.ssr_retention < candidate.ivr_retention
            else:
                assert candidate.ssr_layer is None
                assert candidate.ivr_retention < 1  # or nothing is done


@given(depth=depths, draw=st.data(), visual=st.integers(1, 3000), text=st.integers(1, 500))
def test_costs_lie_between_nothing_and_the_whole(depth, draw, visual, text):
    decoder = replace(draw.draw(st.sampled_from([LLAVA, QWEN])), layers=depth)
    candidate = draw.draw(st.sampled_from([each for kind in everything(depth).values() for each in kind]))
    share, plan = candidate.flops(decoder, visual, text), candidate.plan()
    assert 0 < share < 1.01  # choosing may cost a little more than a late stage saves
    chosen = selection_flops(decoder, visual, plan) / prefill_flops(decoder, visual, text)
    assert share - chosen == pytest.approx(
        prefill_flops(decoder, visual, text, plan) / prefill_flops(decoder, visual, text)
    )
    assert share - chosen <= 1


@given(depth=depths, ivr=st.integers(1, 3), later=st.sets(st.integers(1, 40)))
def test_the_papers_ratios_come_at_every_layer_in_question(depth, ivr, later):
    """Table 9: LLaVA-1.5 keeps 50 % with R_S 0.2 and freezes, Qwen2.5-VL keeps 25 %, then 5 %, with R_S 0.1."""
    freezes = [Candidate(ivr, 0.5, 0.2, "freeze", layer) for layer in later if ivr <= layer < depth - 1]
    sparse = [
        Candidate(ivr, 0.25, 0.1, "sparse", layer, 0.05, ssr_scored_by=by)
        for layer in later
        if ivr < layer < depth
        for by in ("previous", "own")
    ]
    assert set(paper_candidates(depth, [ivr], later, "freeze")) == set(freezes)
    assert set(paper_candidates(depth, [ivr], later, "sparse")) == set(sparse)
    assert list(paper_candidates(depth, [ivr], later, "none")) == [Candidate(ivr, 0.5, 0.2)]


@given(depth=depths)
def test_variants_differ_in_anchors_and_scorers_only(depth):
    for kind in everything(depth).values():
        candidate = kind[-1]
        variants = list(candidate.variants())
        assert {each.kind for each in variants} == {candidate.kind}
        assert len(set(variants)) == len(variants) == 4 * 2 * (2 if candidate.ssr_mode == "sparse" else 1)
        assert replace(candidate, ivr_scored_by="previous", ssr_scored_by="previous") in variants


@given(depth=depths, draw=st.data())
def test_a_candidate_is_found_again_in_its_plan(depth, draw):
    candidate = draw.draw(st.sampled_from([each for kind in everything(depth).values() for each in kind]))
    variant = draw.draw(st.sampled_from(list(candidate.variants())))
    assert Candidate.of(variant.plan()) == variant


@given(layers=st.sets(st.integers(1, 30), max_size=5))
def test_the_second_stage_alone_prunes_nothing_before(layers):
    found = list(alone_candidates(layers))
    assert len(found) == len(set(found)) == 4 * len(layers)
    for each in found:
        (stage,) = each.plan().stages
        assert stage.layer == each.layer
        assert stage.then == ("freeze" if each.mode == "freeze" else "drop")
        assert stage.retention == (0.05 if each.mode == "sparse" else 0)
        assert each.flops(QWEN, 1000, 50) <= 1.01


@given(depth=depths)
@settings(max_examples=20)
def test_the_grid_is_whole(depth):
    """Every layer, every pair of layers that may follow each other, every ratio and every mode."""
    found = {(c.ivr_layer, c.ivr_retention, c.ssr_mode, c.ssr_layer, c.ssr_retention) for c in all_candidates(depth)}
    expected = set()
    for ratio in RETENTIONS:
        for ivr in range(1, depth):
            at = 1 if ratio == 1 else ivr  # a stage that keeps everything is the same one anywhere
            if ratio < 1:
                expected.add((at, ratio, "none", None, None))
            for ssr in range(1, depth):
                if at <= ssr < depth - 1:
                    expected.add((at, ratio, "freeze", ssr, None))
                expected |= {(at, ratio, "sparse", ssr, kept) for kept in SPARSE if ssr > at and kept < ratio}
    assert found == expected


@given(depth=depths)
def test_utility_prunes_once_at_every_layer_or_at_every_other_of_many(depth):
    found = [(c.ivr_layer, c.ivr_retention) for c in utility_candidates(depth)]
    layers = range(1, depth, next(step for step in (1, 2, 3) if len(range(1, depth, step)) <= 16))
    assert sorted(found) == sorted((layer, ratio) for layer in layers for ratio in (0.5, 0.25, 0.125))
    assert {c.ssr_mode for c in utility_candidates(depth)} == {"none"}
