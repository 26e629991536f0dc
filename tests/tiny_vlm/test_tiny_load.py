"""The embedded models load by name, and import costs nothing."""

import shutil
import subprocess
import sys

import pytest
import torch

import tiny_vlm
from halfv_data import scenes
from tiny_vlm.evaluate import answers


def test_load_gives_model_and_processor(tiny, monkeypatch):
    monkeypatch.setattr(tiny_vlm, "CHECKPOINTS", tiny.folder.parent)
    model, processor = tiny_vlm.load(tiny.family.name)
    assert not model.training and model.dtype == torch.float32 and model.device.type == "cpu"
    assert type(model) is type(tiny.model) and type(processor) is type(tiny.processor)
    assert tiny_vlm.load(tiny.family.name, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    for name, parameter in tiny.model.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name]), name


def test_a_loaded_model_answers_about_a_picture(tiny):
    batch = list(scenes(2, seed=0))
    (answer,) = answers(tiny.model, tiny.processor, batch[:1], max_new_tokens=3)
    assert isinstance(answer, str)
    assert "<" not in answer  # special tokens are not spelled out


def test_a_padded_batch_answers_as_one_by_one(tiny):
    """Left padding: prompts of different length do not disturb each other."""
    short, long = scenes(2, seed=0, tasks=["colour", "relation"])
    prompts = [tiny.processor.tokenizer(s.question)["input_ids"] for s in (short, long)]
    assert len(prompts[0]) < len(prompts[1])
    alone = [answers(tiny.model, tiny.processor, [sample], max_new_tokens=4)[0] for sample in (short, long)]
    assert answers(tiny.model, tiny.processor, [short, long], max_new_tokens=4) == alone
    assert answers(tiny.model, tiny.processor, [long, short], max_new_tokens=4) == alone[::-1]


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"no embedded model is called 'tiny-gpt': choose one of tiny-qwen2\.5-vl"):
        tiny_vlm.load("tiny-gpt")


def test_a_missing_checkpoint_says_how_to_train_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_vlm, "CHECKPOINTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tiny-llava is missing from .*: train it, make tiny-vlm"):
        tiny_vlm.load("tiny-llava")


def test_import_needs_no_torch():
    code = "import sys, tiny_vlm; print([name for name in ('torch', 'transformers', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_checkpoint_folder_can_be_moved(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny.folder, tmp_path / tiny.family.name)
    monkeypatch.setattr(tiny_vlm, "CHECKPOINTS", tmp_path)
    assert tiny_vlm.checkpoint(tiny.family.name) == tmp_path / tiny.family.name
