"""FitPrune: attention is that of the model's own maps, and the plan keeps to its budget, counted by hand."""

from types import SimpleNamespace

import pytest
import torch

from halfv_accel import HalfVError, accelerate
from halfv_accel.flops import prefill_flops, selection_flops
from halfv_accel.strategies import FitPrune, KeepNone
from halfv_probe.measures.received import received_attention
from halfv_probe.methods.fitprune import FitPruneBudget, layer_stages
from tests.halfv_accel.miniatures import IMAGE, LAYERS, VIDEO
from tests.halfv_probe.methods.cases import batches, measurements

VISUAL, TEXT = 40, 12


@torch.no_grad()
def slow(mini, inputs):
    """Received from text and from visual tokens, [L, V] of each prompt, from the eager model's maps."""
    maps = torch.stack(mini.model("eager")(**inputs, output_attentions=True).attentions).double()  # [L, B, h, S, S]
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)):
        visual = (ids == IMAGE) | ((ids == VIDEO) & mini.videos)
        to_visual = maps[:, row][..., visual]
        yield to_visual[:, :, mask & ~visual].mean(2).amax(1), to_visual[:, :, visual].mean(2).amax(1)


def test_attention_is_that_of_the_eager_models_maps(mini):
    for inputs in batches(mini):
        found = received_attention(mini.model(), inputs)
        for one, (text, visual) in zip(found, slow(mini, inputs), strict=True):
            torch.testing.assert_close(one.text.double(), text, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(one.visual.double(), visual, rtol=1e-4, atol=1e-6)


def test_a_prompt_without_a_picture_is_refused(mini):
    with pytest.raises(HalfVError, match="prompt 1 of the batch holds no visual token"):
        received_attention(mini.model(), mini.batch([mini.prompt(0), mini.prompt(1, 0)]))


@pytest.mark.parametrize("target", [0.9, 0.7, 0.5])
def test_the_plan_keeps_to_the_budget_counted_by_hand(mini, target):
    config = mini.model().config
    found = FitPruneBudget(target).find(measurements(mini), SimpleNamespace(visual=VISUAL, text=TEXT))
    spent = prefill_flops(config, VISUAL, TEXT, found.plan) + selection_flops(config, VISUAL, found.plan, TEXT)
    assert spent <= target * prefill_flops(config, VISUAL, TEXT)
    layers = [stage.layer for stage in found.plan.stages]
    kept = [stage.most(VISUAL) for stage in found.plan.stages]
    assert (
        layers == sorted(set(layers)) and kept == sorted(set(kept), reverse=True) and kept[0] < VISUAL and kept[-1] > 0
    )
    assert 0 < found.measured["attention_lost"] < 1
    with accelerate(mini.model(), found.plan) as run, torch.no_grad():
        mini.model()(**batches(mini)[1])
    assert [stage.layer for stage in run.last.stages] == layers


def test_attention_of_the_evidence_is_the_mean_of_sums(mini):
    found = FitPruneBudget(0.6).find(measurements(mini), SimpleNamespace(visual=VISUAL, text=TEXT))
    each = [pair for inputs in batches(mini) for pair in slow(mini, inputs)]
    for part, name in enumerate(("text_attention", "visual_attention")):
        expected = torch.stack([pair[part].sum(-1) for pair in each]).mean(0)
        assert found.measured[name] == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_budget_that_cannot_be_met_says_what_can(mini):
    with pytest.raises(HalfVError, match=r"ask for --target-flops 0\.\d\d") as refused:
        FitPruneBudget(0.001).find(measurements(mini), SimpleNamespace(visual=VISUAL, text=TEXT))
    least = float(str(refused.value).split()[-1])
    FitPruneBudget(least).find(measurements(mini), SimpleNamespace(visual=VISUAL, text=TEXT))


def test_counts_that_do_not_change_are_no_stage():
    stages = layer_stages([10, 10, 7, 7, 3, 0, 0])
    assert [(stage.layer, stage.most(10)) for stage in stages] == [(2, 7), (4, 3), (5, 0)]
    assert [type(stage.strategy) for stage in stages] == [FitPrune, FitPrune, KeepNone]
    assert layer_stages([10] * LAYERS) == ()
