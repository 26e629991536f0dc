"""Loading fails in one line, whatever is wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import halfv_accel.models as models
from halfv_accel import KNOWN_MODELS, HalfVError, load_model
from tiny_vlm.llava import TinyLlava

from .miniatures import MiniLlava


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    MiniLlava().model().save_pretrained(folder)
    TinyLlava().processor().save_pretrained(folder)
    return folder


def refusal(action, pattern):
    with pytest.raises(HalfVError, match=pattern) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_a_saved_folder_comes_back_ready(saved):
    model, processor = load_model(saved, device="cpu", dtype="bfloat16")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert processor.tokenizer is not None
    assert load_model(str(saved))[0].dtype == torch.float32  # as saved


def test_folders_that_hold_no_model(saved, tmp_path):
    refusal(lambda: load_model(tmp_path), "no config.json")
    refusal(lambda: load_model(saved / "config.json"), "is not a folder")
    refusal(lambda: load_model("./nowhere"), "is not a folder")
    (tmp_path / "config.json").write_text("{oops")
    refusal(lambda: load_model(tmp_path), "no model that can be loaded")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refusal(lambda: load_model(tmp_path), "no model that can be loaded")
    shutil.copy(saved / "config.json", tmp_path)
    refusal(lambda: load_model(tmp_path), "no model that can be loaded.*model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"xx")
    refusal(lambda: load_model(tmp_path), "no model that can be loaded")


def test_a_checkpoint_with_a_missing_weight(saved, tmp_path):
    shutil.copy(saved / "config.json", tmp_path)
    weights = load_file(saved / "model.safetensors")
    weights.pop(next(name for name in weights if "up_proj" in name))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refusal(lambda: load_model(tmp_path), "lacks 1 weights.*up_proj")


def test_a_folder_without_processor(tmp_path):
    MiniLlava().model().save_pretrained(tmp_path)
    refusal(lambda: load_model(tmp_path), "no processor")


def test_names(monkeypatch):
    refusal(lambda: load_model("llava-1.5-7"), r"did you mean llava-1\.5-7b\?")
    refusal(lambda: load_model("banana"), "no model 'banana'.*qwen2.5-vl-7b")
    refusal(lambda: load_model("a/b/c"), "no model 'a/b/c'")
    for source in KNOWN_MODELS.values():
        assert source.count("/") == 1


@pytest.mark.parametrize("problem", [ConnectionError("Name or service not known"), TimeoutError("timed out")])
def test_without_a_network_it_asks_once(monkeypatch, problem):
    asked = []

    def probe(url, timeout):
        asked.append(url)
        raise problem

    monkeypatch.setattr(models, "get_hf_file_metadata", probe)
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda *_: None)
    refusal(lambda: load_model("LLaVA-1.5-7B"), "llava-hf/llava-1.5-7b-hf.*cannot be reached.*folder")
    assert len(asked) == 1
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda *_: "/cache/config.json")
    assert models.locate("some/model") == ("some/model", True)


@pytest.mark.parametrize("device", ["banana", "cuda:99", "", "meta:x"])
def test_devices(saved, device):
    refusal(lambda: load_model(saved, device=device), "is not available here")


@pytest.mark.parametrize("dtype", ["int8", "banana", "", None, torch.int8, "nn"])
def test_dtypes(saved, dtype):
    refusal(lambda: load_model(saved, dtype=dtype), "is not known")
