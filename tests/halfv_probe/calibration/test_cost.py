"""What a default calibration of a deep model costs, counted by PyTorch's own counter of operations."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from halfv_accel.architectures import middling
from halfv_accel.bench.random_weights import assemble
from halfv_accel.settings import Settings
from halfv_probe.calibration import search
from halfv_probe.calibration.calibrate import calibrate
from halfv_probe.choice import pick
from halfv_probe.choice.findings import Findings
from halfv_probe.choice.mode import ModeVerdict
from halfv_probe.choice.stages import detect_stages
from tests.halfv_probe.choice.published import QWEN

LAYERS, SIDE, TEXT = 28, 16, 12
MOST = 60  # plain forwards a sample


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("mode", ["freeze", "sparse"])
def test_a_default_calibration_of_28_layers_costs_at_most_60_forwards_a_sample(monkeypatch, mode):
    """With the stages of the published Qwen2.5-VL, whose witnesses part, so that many layers are tried."""
    stages = replace(detect_stages(QWEN.visual, QWEN.layer_kl), ssr_mode=mode)
    monkeypatch.setattr(Findings, "stages", lambda self, *_: stages)
    monkeypatch.setattr(pick, "mode_by_trials", lambda *_: ModeVerdict(None, {}, "not told apart"))
    monkeypatch.setattr(search, "FIRST_LOOK", 1)
    model = assemble(middling(width=128, layers=LAYERS, side=SIDE), seed=0)
    model.set_attn_implementation("eager")
    draw = torch.Generator().manual_seed(0)
    prompts = []
    for _ in range(2):
        text = torch.randint(10, 900, (1, TEXT), generator=draw)
        ids = torch.cat([torch.full((1, SIDE * SIDE), model.config.image_token_id), text], dim=1)
        pixels = torch.rand(1, 3, SIDE * 14, SIDE * 14, generator=draw)
        prompts.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels})
    with torch.no_grad():
        plain = counted(lambda: [model(**inputs, use_cache=False, logits_to_keep=1) for inputs in prompts])
    profiles = []
    spent = counted(lambda: profiles.append(calibrate(model, prompts, Settings())))
    assert profiles[0].ssr.mode == mode
    assert spent <= MOST * plain
    assert spent >= 20 * plain  # else what was counted is not all of it
