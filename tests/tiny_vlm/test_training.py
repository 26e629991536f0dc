"""The training loop: a run that was stopped goes on as if it had not been, and logs what it did."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from tiny_vlm.llava import TinyLlava
from tiny_vlm.train import Recipe, Trainer

STEPS = 4


@pytest.fixture
def recipe(monkeypatch):
    """Four small steps, the last two of them swapped, without compilation and validation."""
    monkeypatch.setattr(TinyLlava, "speed_up", lambda self, model: None)
    monkeypatch.setattr(Trainer, "validate", lambda self, images: None)
    return Recipe("tiny-llava", STEPS, batch_size=2, swap_after=2, swap_depths=((2, 1.0),), evaluate_every=2)


class Stopped(Exception):
    pass


def test_a_stopped_run_resumes_to_the_same_weights(recipe, tmp_path, monkeypatch):
    whole = Trainer(recipe, tmp_path / "whole", "cpu")
    whole.run()

    step = Trainer.train_step

    def stop_at_three(self):
        if self.step == 3:
            raise Stopped
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", stop_at_three)
    with pytest.raises(Stopped):
        Trainer(recipe, tmp_path / "parts", "cpu").run()
    monkeypatch.setattr(Trainer, "train_step", step)
    resumed = Trainer(recipe, tmp_path / "parts", "cpu")
    assert resumed.step == 2
    resumed.run()
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0, atol=0, msg=name)


def test_a_run_leaves_a_checkpoint_and_its_recipe(recipe, tmp_path):
    Trainer(recipe, tmp_path, "cpu").run()
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == STEPS


def test_a_run_goes_on_only_with_its_own_recipe(recipe, tmp_path):
    Trainer(recipe, tmp_path, "cpu").run()
    with pytest.raises(ValueError, match="steps was 4, now 8"):
        Trainer(replace(recipe, steps=8), tmp_path, "cpu")


def test_resuming_drops_the_log_rows_that_were_not_saved(recipe, tmp_path):
    Trainer(recipe, tmp_path, "cpu").run()
    with (tmp_path / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["step", "answer"], [STEPS - 1, 1.0], [STEPS, 0.9], [STEPS + 25, 0.8]])
    Trainer(recipe, tmp_path, "cpu")
    assert (tmp_path / "log.csv").read_text().splitlines() == ["step,answer", f"{STEPS - 1},1.0", f"{STEPS},0.9"]


def test_schedule_warms_up_holds_and_decays():
    recipe = Recipe("tiny-llava", steps=1000, warmup=100, decay_from=0.7)
    rates = [recipe.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates[99:700]) == min(rates[99:700]) == 1.0
    assert rates[700:] == sorted(rates[700:], reverse=True)
    assert rates[-1] == pytest.approx(0.02)


def test_swaps_start_when_they_should_and_repeat():
    recipe = Recipe("tiny-llava", steps=1000, swap_after=400)
    depths = [recipe.swap_depth(step) for step in range(1000)]
    assert set(depths[:400]) == {0}
    assert set(depths[400:]) == {0, 2, 3}
    assert depths == [recipe.swap_depth(step) for step in range(1000)]
