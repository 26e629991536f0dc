"""Loading fails in one line, whatever is wrong."""

import json
import logging
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VipLlavaConfig

import halfv_accel.models as models
from halfv_accel import KNOWN_MODELS, accelerate, halfv_plan, load_model
from halfv_accel.adapters import FAMILIES
from tiny_vlm.llava import TinyLlava

from .hub import HUB, llava_config
from .miniatures import MiniLlava
from .refusing import refusal


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    MiniLlava().model().save_pretrained(folder)
    TinyLlava().processor().save_pretrained(folder)
    return folder


def test_a_saved_folder_comes_back_ready(saved):
    model, processor = load_model(saved, device="cpu", dtype="bfloat16")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert processor.tokenizer is not None
    assert load_model(str(saved))[0].dtype == torch.float32  # as saved


ABLE = {
    "intel with amx": (dict(avx512_bf16=True, amx_bf16=True, avx512_fp16=True), {torch.bfloat16, torch.float16}),
    "zen 4": (dict(avx512_bf16=True, avx512_fp16=False), {torch.bfloat16}),
    "skylake": (dict(avx512_f=True, avx512_bf16=False, amx_bf16=False, f16c=True), set()),
    "arm with bf16": (dict(architecture="arm64", bf16=True, fp16_arith=True), {torch.bfloat16}),
    "arm without": (dict(architecture="arm64", bf16=False, fp16_arith=True), set()),
    "unknown": (dict(), set()),
}


@pytest.fixture(params=ABLE)
def able(request, monkeypatch):
    """This CPU, as if it were another; gives the half types that it multiplies."""
    told, halves = ABLE[request.param]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    return halves


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("named", [True, False], ids=["in the config", "in the weights alone"])
def test_auto_takes_what_the_cpu_multiplies_natively(tmp_path, saved, able, stored, named):
    load_model(saved, dtype=stored)[0].save_pretrained(tmp_path)
    TinyLlava().processor().save_pretrained(tmp_path)
    if not named:
        config = json.loads((tmp_path / "config.json").read_text())
        assert config.pop("dtype") == str(stored).removeprefix("torch.")
        (tmp_path / "config.json").write_text(json.dumps(config))
    told = []
    model = load_model(tmp_path, "cpu", tell=told.append)[0]
    if stored in {torch.float32, *able}:
        assert (model.dtype, told) == (stored, [])
    else:
        assert model.dtype == torch.float32
        assert len(told) == 1 and str(stored).removeprefix("torch.") in told[0] and "float32" in told[0]
    assert load_model(tmp_path, "cpu", stored, tell=pytest.fail)[0].dtype == stored  # as asked


def test_without_the_library_that_uses_them_no_instructions_help(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(avx512_bf16=True, avx512_fp16=True))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not models.is_native(torch.bfloat16) and not models.is_native(torch.float16)
    assert models.is_native(torch.float32) and models.is_native(torch.float64)


def test_a_torch_that_tells_nothing_gets_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not models.is_native(torch.bfloat16)


def test_what_quantized_weights_compute_in_is_left_to_them(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict())
    config = SimpleNamespace(quantization_config={"quant_method": "awq"})
    assert models._fitting(config, torch.float16, torch.device("cpu"), pytest.fail) == torch.float16


def test_a_gpu_takes_what_the_checkpoint_holds(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict())
    assert models._fitting(SimpleNamespace(), torch.bfloat16, torch.device("cuda"), pytest.fail) == torch.bfloat16


def test_python_users_are_told_by_a_log(tmp_path, saved, monkeypatch, caplog):
    load_model(saved, dtype="bfloat16")[0].save_pretrained(tmp_path)
    TinyLlava().processor().save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict())
    load_model(tmp_path, "cpu")
    assert [record.name for record in caplog.records] == ["halfv_accel.models"]


def test_folders_that_hold_no_model(saved, tmp_path):
    refusal(lambda: load_model(tmp_path), "no config.json")
    refusal(lambda: load_model(saved / "config.json"), "is not a folder")
    refusal(lambda: load_model("./nowhere"), "is not a folder")
    (tmp_path / "config.json").write_text("{oops")
    refusal(lambda: load_model(tmp_path), "no model that can be loaded")
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    refusal(lambda: load_model(tmp_path), "no model that can be loaded.*model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"xx")
    refusal(lambda: load_model(tmp_path), "no model that can be loaded")


def test_a_checkpoint_with_a_missing_weight(saved, tmp_path):
    shutil.copy(saved / "config.json", tmp_path)
    weights = load_file(saved / "model.safetensors")
    weights.pop(next(name for name in weights if "up_proj" in name))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    TinyLlava().processor().save_pretrained(tmp_path)
    refusal(lambda: load_model(tmp_path), "lacks 1 weights.*up_proj")


def test_a_folder_without_processor(tmp_path):
    MiniLlava().model().save_pretrained(tmp_path)
    refusal(lambda: load_model(tmp_path), "no processor")


UNSUPPORTED = [
    (dict(model_type="idefics3", architectures=["Idefics3ForConditionalGeneration"]), "Idefics3ForConditionalGener.*"),
    (dict(model_type="blip-2"), "Blip2ForConditionalGeneration"),
    (dict(model_type="chameleon"), "ChameleonForConditionalGeneration"),  # cannot be built without its vocabulary
    (dict(model_type="llava", architectures=["LlavaLlamaForCausalLM"]), "LlavaLlamaForCausalLM"),  # the original code's
    (dict(model_type="bert", architectures=["BertForMaskedLM"]), "BertForMaskedLM"),
    (dict(model_type="bert"), "bert"),
]


@pytest.mark.parametrize(("config", "called"), UNSUPPORTED)
def test_an_unsupported_architecture_is_refused_before_its_weights_are_read(tmp_path, monkeypatch, config, called):
    def read(*_, **__):
        pytest.fail("the weights or the processor were read")

    monkeypatch.setattr(models.AutoModelForImageTextToText, "from_pretrained", read)
    monkeypatch.setattr(models, "load_processor", read)
    (tmp_path / "config.json").write_text(json.dumps(config))
    refusal(lambda: load_model(tmp_path), f"is a {called}, which is not supported: give one of Llava.*, or another")


def test_an_architecture_without_adapter_loads_if_its_parts_have_the_usual_places(tmp_path):
    build = partial(llava_config, VipLlavaConfig, vision_feature_layers=[-1])
    replace(HUB["LlavaForConditionalGeneration"], config=build).save(tmp_path)
    model, _ = load_model(tmp_path)
    assert type(model).__name__ == "VipLlavaForConditionalGeneration"
    assert type(model).__name__ not in FAMILIES
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_the_processor_is_loaded_before_the_weights(saved, tmp_path):
    """A small file that is missing shows before gigabytes are read."""
    shutil.copy(saved / "config.json", tmp_path)
    refusal(lambda: load_model(tmp_path), "no processor that can be loaded.*save the processor")


def test_names(monkeypatch):
    refusal(lambda: load_model("llava-1.5-7"), r"did you mean llava-1\.5-7b\?")
    refusal(lambda: load_model("banana"), "no model 'banana'.*qwen2.5-vl-7b")
    refusal(lambda: load_model("a/b/c"), "no model 'a/b/c'")
    refusal(lambda: load_model("mid"), "mid has no checkpoint and serves with random weights only.*qwen2.5-vl-7b")
    for source in KNOWN_MODELS.values():
        assert source.count("/") == 1


def test_a_folder_may_have_the_name_of_a_model_without_checkpoint(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "mid")
    monkeypatch.chdir(tmp_path)
    assert models.locate("mid") == ("mid", True)


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


def test_the_hub_s_own_warnings_stay_out_of_sight(monkeypatch, caplog):
    logger = logging.getLogger("huggingface_hub.utils._http")

    def probe(url, timeout):
        logger.warning("'no route' thrown while requesting HEAD")
        raise ConnectionError("no route")

    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    monkeypatch.setattr(models, "get_hf_file_metadata", probe)
    refusal(lambda: load_model("no/such"), "cannot be reached")
    assert caplog.records == []
    logger.warning("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


@pytest.mark.parametrize("device", ["banana", "cuda:99", "", "meta", "meta:x", torch.device("meta")])
def test_devices(saved, device):
    refusal(lambda: load_model(saved, device=device), "is not available here")


@pytest.mark.parametrize("dtype", ["int8", "banana", "", None, torch.int8, "nn", "float8_e4m3fn", "complex64"])
def test_dtypes(saved, dtype):
    refusal(lambda: load_model(saved, dtype=dtype), "is not known")


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_models_run_accelerated_in_every_dtype(mini, dtype):
    model, inputs = mini.build().eval().to(dtype), mini.batch([mini.prompt(0)])
    plan = halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=4)
    with torch.no_grad(), accelerate(model, plan):
        logits = model(**inputs).logits
    assert logits.dtype == dtype
    assert torch.isfinite(logits).all()
