"""Tensor parallelism in two and three processes: every one of them sees what a single process sees."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import tiny_vlm
from halfv_accel import Plan, Stage, halfv_plan
from halfv_accel.prompts import batch_inputs
from halfv_accel.strategies import STRATEGIES, Adaptive, AnchorCover, LastTokenAttention, Merging, needs_of
from halfv_data import load_samples

from .miniatures import IMAGE, MiniLlava, MiniQwen, widen
from .miniatures.base import text_options
from .miniatures.llavas import clip

sys.path.insert(0, str(Path(__file__).parent))
import divided

EMBEDDED = ("tiny-qwen2.5-vl", "tiny-llava")
TOLERANCE = 1e-4  # of logits of size about 13, float32: sums over processes are added in another order


def plans(first, second):
    """Both stages by every strategy there is, both scorers, both ways with the rest."""
    found = {
        "keep all": halfv_plan(ivr_layer=first, ivr_retention=1.0),
        "sparse": halfv_plan(
            ivr_layer=first, ivr_retention=0.4, ssr_mode="sparse", ssr_layer=second, ssr_retention=0.1
        ),
        "freeze": halfv_plan(ivr_layer=first, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=second),
        "own scorer": Plan(
            (
                Stage("ivr", first, AnchorCover(0.5, scored_by="own"), 0.4),
                Stage("ssr", second, LastTokenAttention(scored_by="own"), 0.1),
            )
        ),
    }
    for name in STRATEGIES:
        strategy, share = STRATEGIES.resolve(name), 0.0 if name == "keep_none" else 0.3
        layer = first if needs_of(strategy).before or needs_of(strategy).prompt else 0
        least = dict(least=0.05) if isinstance(strategy, Adaptive) else {}
        found[name] = Plan((Stage("one", layer, name, share, **least),))
        if layer and not isinstance(strategy, Merging):
            two = Stage("one", first, "last_token_attention", 0.5), Stage("two", second, name, share, "freeze")
            found[f"{name}, frozen"] = Plan(two)
    found |= {
        "skip": Plan((), skip=(0, first, second)),
        "before, within, and skip": Plan(
            (Stage("a", 0, "visionzip", 0.6), Stage("b", first, "sparsevlm", 0.3)), skip=(first, second)
        ),
        "of another mind": Plan((Stage("one", first, divided.Whim(), 0.5),)),
        "as many as another mind wants": Plan((Stage("one", first, divided.Whim(), 0.5, least=0.2),)),
    }
    return found


def embedded(name):
    processor = tiny_vlm.load(name)[1]
    turns = [([sample.image], sample.question) for sample in load_samples(n=3)[1:]]
    inputs = dict(batch_inputs(processor, turns))  # rows of unequal length
    assert not inputs["attention_mask"].all()
    cases = {"untouched": (None, inputs), **{case: (plan, inputs) for case, plan in plans(3, 6).items()}}
    return divided.Job(str(tiny_vlm.checkpoint(name)), cases)


# Three processes can share these, two queries to a key.
SIX = dict(num_attention_heads=6, num_key_value_heads=3, hidden_size=48, head_dim=8)


class LlavaOfSix(MiniLlava):
    def build(self):
        text = LlamaConfig(**{**text_options(3), **SIX})
        config = LlavaConfig(vision_config=clip(20), text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
        return LlavaForConditionalGeneration(config)


class QwenOfSix(MiniQwen):
    def text(self):
        return {**super().text(), **SIX}

    def vision(self):
        return {**super().vision(), "out_hidden_size": SIX["hidden_size"]}


def saved(mini, folder):
    """A miniature as a checkpoint, and a ragged batch for it."""
    widen(mini.build()).save_pretrained(folder)
    inputs = mini.batch([mini.prompt(0, 2), mini.prompt(1, 1, 9)])
    return divided.Job(str(folder), {case: (plan, inputs) for case, plan in plans(2, 4).items()}, [inputs])


def start(processes, jobs, folder):
    """What each process found."""
    torch.save(jobs, folder / "jobs.pt")
    with contextlib.closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    command = [sys.executable, "-W", "ignore", *launch, divided.__file__, str(folder / "jobs.pt"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[:3000]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    jobs = {name: embedded(name) for name in EMBEDDED}
    one, layers = jobs["tiny-llava"], "model.vision_tower.encoder.layers.*.mlp."
    asked = {case: one.cases[case] for case in ("untouched", "divprune", "visionzip")}
    plan = {**tiny_vlm.load("tiny-llava")[0].tp_plan, f"{layers}fc1": "colwise", f"{layers}fc2": "rowwise"}
    jobs["tower divided"] = divided.Job(one.folder, asked, tp_plan=plan)
    return jobs, start(2, jobs, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    jobs = {mini.name: saved(mini, folder / mini.name) for mini in (LlavaOfSix(), QwenOfSix())}
    jobs["of four heads"] = divided.Job(str(tiny_vlm.checkpoint("tiny-llava")), jobs[LlavaOfSix.name].cases)
    return jobs, start(3, jobs, folder)


def compare(jobs, ranks, name):
    """Each process against this one, which has the whole model."""
    wanted = divided.run(jobs[name])
    assert all(wanted["checks"].values())
    for found in (rank[name] for rank in ranks):
        assert not found["refused"] and not wanted["refused"]
        assert found["checks"] == wanted["checks"]
        assert found["fingerprint"] == wanted["fingerprint"]
        for own, seen in zip(wanted["balance"], found["balance"], strict=True):
            torch.testing.assert_close(seen, own, rtol=0, atol=TOLERANCE)
        apart = [
            case
            for case, own in wanted["cases"].items()
            if not all(map(torch.equal, found["cases"][case]["kept"], own["kept"]))
        ]
        assert not apart
        for case, own in wanted["cases"].items():
            seen = found["cases"][case]
            assert torch.equal(seen["tokens"], own["tokens"]), case
            torch.testing.assert_close(seen["logits"], own["logits"], rtol=0, atol=TOLERANCE, msg=case)


@pytest.mark.parametrize("name", EMBEDDED)
def test_two_processes_see_what_one_sees(two, name):
    compare(*two, name)


@pytest.mark.parametrize("name", [LlavaOfSix.name, QwenOfSix.name])
def test_three_processes_see_what_one_sees(three, name):
    compare(*three, name)


def test_the_plans_make_a_difference(two):
    """Or else the comparisons above could not fail."""
    for found in two[1]:
        for name in EMBEDDED:
            cases = found[name]["cases"]
            for case in ("sparse", "freeze", "own scorer"):
                assert (cases[case]["logits"] - cases["untouched"]["logits"]).abs().max() > 1000 * TOLERANCE


def test_heads_that_cannot_be_divided_are_refused(three):
    for found in three[1]:
        refused = found["of four heads"]["refused"]
        assert set(refused) == set(three[0]["of four heads"].cases)
        assert all("4 heads of queries cannot be divided among 3 processes" in each for each in refused.values())


def test_a_tower_that_is_divided_gives_no_signals(two):
    """Refused before a layer runs; what asks for none is right."""
    jobs, ranks = two
    wanted = divided.run(jobs["tower divided"])
    for found in (rank["tower divided"] for rank in ranks):
        assert "CLIPVisionModel is divided among processes: load the model without" in found["refused"]["visionzip"]
        for case in ("untouched", "divprune"):
            mine, own = found["cases"][case], wanted["cases"][case]
            assert all(torch.equal(a, b) for a, b in zip(mine["kept"], own["kept"], strict=True))
            torch.testing.assert_close(mine["logits"], own["logits"], rtol=0, atol=TOLERANCE)


def test_calibration_is_refused(three):
    for found in three[1]:
        for name in (LlavaOfSix.name, QwenOfSix.name):
            assert "divided among 3 processes" in found[name]["calibration"]
            assert "device_map='auto'" in found[name]["calibration"]
