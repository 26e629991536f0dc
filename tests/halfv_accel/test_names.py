"""One table of names for all uses, and the paper's plans, found by the model itself."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
)

from halfv_accel import KNOWN_MODELS, accelerate, halfv_plan, load_model, names, paper_plan
from halfv_accel.bench import build, describe_plan
from halfv_accel.names import ALIASES, MODELS, Known, find, named_plan

from .miniatures import MINIATURES
from .refusing import refusal

TABLE_9 = {  # as printed: L_IVR, R_IVR, R_S, L_SSR, and the layers that the row itself names
    "llava-1.5-7b": ("ivr:3:0.5:0.2,freeze:15", 32),
    "llava-1.5-13b": ("ivr:3:0.5:0.2,freeze:15", 40),
    "llava-next-mistral-7b": ("ivr:2:0.5:0.1,freeze:16", 32),
    "qwen2.5-vl-7b": ("ivr:2:0.25:0.1,sparse:21:0.05", 28),
}
SIZED = [name for name, known in MODELS.items() if known.config is not None]
ROWS = "llava-1.5-7b, llava-1.5-13b, llava-next-mistral-7b, qwen2.5-vl-7b"


@pytest.fixture
def mini_row(monkeypatch):
    """The miniature LLaVA as if it were a row of Table 9."""
    plan = halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=4)
    monkeypatch.setitem(MODELS, "mini", Known(config=lambda: MINIATURES["llava"].model().config, paper=plan))
    return plan


def test_every_name_serves_and_where_it_does_not_the_others_are_named():
    for name in (*MODELS, *ALIASES):
        known = find(name)
        assert known.hub is not None or known.config is not None
        if known.hub is None:
            refusal(lambda name=name: load_model(name), f"{name} has no checkpoint.*random weights only.*qwen3-vl-8b")
        else:
            assert names.checkpoint(name) == KNOWN_MODELS[name] == known.hub
        if known.config is None:
            refusal(lambda name=name: build(name), f"{name} is known by its checkpoint only.*{', '.join(SIZED)}")
        else:
            assert names.architecture(name).model_type == known.config().model_type


def test_a_name_may_be_written_in_capitals_as_an_alias_or_as_its_hub_id():
    mistral = MODELS["llava-next-mistral-7b"]
    for name in ("llava-next-7b", "LLaVA-NeXT-7B", "llava-hf/llava-v1.6-mistral-7b-hf"):
        assert find(name) is mistral
        assert names.checkpoint(name) == mistral.hub
    assert find("llava-next") is None and find("someone/some-model") is None
    assert names.checkpoint("someone/some-model") == "someone/some-model"
    assert set(ALIASES.values()) <= set(MODELS) and not set(ALIASES) & set(MODELS)


@pytest.mark.parametrize("use", [load_model, build])
@pytest.mark.parametrize(
    ("typed", "meant"), [("llava-nxt-7b", "llava-next-7b"), ("Qwen2.5-VL-8B", "qwen2.5-vl-7b"), ("midi", "mid")]
)
def test_both_uses_guess_the_same_names(use, typed, meant):
    if use is load_model and find(meant).hub is None:
        refusal(lambda: use(typed), f"no model '{typed}'.*: give a folder")
    else:
        refusal(lambda: use(typed), f"no model '{typed}'.*did you mean {meant}\\?")


def test_the_plans_are_those_of_table_9():
    found = {name: known for name, known in MODELS.items() if known.paper is not None}
    rows = {
        name: (describe_plan(known.paper), known.config().get_text_config().num_hidden_layers)
        for name, known in found.items()
    }
    assert rows == TABLE_9


def test_the_plans_are_those_that_the_documents_show():
    text = (Path(__file__).parents[2] / "docs" / "fidelity.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| [^|]+ \| `([^`]+)` \| [^|]+ \|$", text.split("## The paper's plans")[1], flags=re.M)
    assert shown == [plan for plan, _ in TABLE_9.values()]


@pytest.mark.parametrize("name", SIZED)
def test_a_model_is_recognised_by_itself(name, tmp_path):
    """From the model, from its config, and from a folder of any name."""
    expected = TABLE_9[name][0] if name in TABLE_9 else "untouched"
    model = build(name, "meta", torch.bfloat16)
    model.config.save_pretrained(tmp_path)
    for known in (model, model.config, AutoConfig.from_pretrained(tmp_path)):
        assert describe_plan(paper_plan(known)) == expected


def test_configs_as_the_checkpoints_have_them():
    """What is left out there is a default, and Qwen's language model has no part of its own."""
    llava = LlavaConfig(text_config=dict(model_type="llama", vocab_size=32064))
    thirteen = dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
    larger = LlavaConfig(text_config=dict(model_type="llama", num_key_value_heads=40, **thirteen))
    mistral = LlavaNextConfig(text_config=dict(model_type="mistral", intermediate_size=14336, sliding_window=None))
    sizes = dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28)
    rotary = dict(type="mrope", mrope_section=[16, 24, 24])
    qwen = Qwen2_5_VLConfig(num_key_value_heads=4, vocab_size=152064, rope_scaling=rotary, **sizes)
    found = [describe_plan(paper_plan(config)) for config in (llava, larger, mistral, qwen)]
    assert found == [text for text, _ in TABLE_9.values()]


MISTRAL_7B = dict(intermediate_size=14336, num_key_value_heads=8)
RELATIVES = {  # real models of the same class, depth and width as one of Table 9, or nearly
    "LLaVA-NeXT with Vicuna-7B": LlavaNextConfig(text_config=LlamaConfig()),
    "LLaVA-NeXT with Llama-3-8B": LlavaNextConfig(text_config=LlamaConfig(vocab_size=128256, **MISTRAL_7B)),
    "LLaVA-1.5 with Llama-3-8B": LlavaConfig(text_config=LlamaConfig(vocab_size=128256, **MISTRAL_7B)),
    "BakLLaVA": LlavaConfig(text_config=MistralConfig(**MISTRAL_7B)),
    "Pixtral-12B": LlavaConfig(
        text_config=MistralConfig(hidden_size=5120, num_hidden_layers=40, head_dim=128, **MISTRAL_7B)
    ),
    "Qwen2-VL-7B": names.architecture("qwen2-vl-7b"),
    "a language model of another build": LlavaConfig(text_config=dict(model_type="mamba")),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_does_not_pass_for_a_model_of_the_paper(name):
    assert paper_plan(RELATIVES[name]) is None
    refusal(lambda: named_plan("paper", RELATIVES[name]), f"the paper has no plan for a .*, only for {ROWS}: write one")


def test_a_decoder_of_the_same_size_is_mentioned_and_not_lent():
    message = "a qwen2_vl with 28 layers of width 3584, only .*ivr:2:0.25:0.1,sparse:21:0.05, which is .* the same size"
    refusal(lambda: named_plan("paper", names.architecture("qwen2-vl-7b")), message)
    small = Qwen2VLConfig(text_config=dict(num_hidden_layers=3))
    refusal(lambda: named_plan("paper", small), "3 layers of width .*ivr:2:0.25,sparse:21:0.05$")


@given(name=st.sampled_from(list(TABLE_9)), key=st.sampled_from(["num_hidden_layers", "hidden_size", "head_dim"]))
def test_another_size_is_another_model(name, key):
    config = names.architecture(name)
    text = config.get_text_config()
    old = getattr(text, key, None) or text.hidden_size // text.num_attention_heads
    setattr(text, key, 2 * old)
    assert paper_plan(config) is None


@pytest.mark.parametrize("nonsense", ["llava-1.5-7b", None, 7, torch.nn.Linear(1, 1)])
def test_only_models_and_configs_have_plans(nonsense):
    refusal(lambda: paper_plan(nonsense), "is no model: give a transformers model or its config")


def test_accelerate_takes_the_paper_s_plan_by_name(mini_row, monkeypatch, tmp_path):
    model = MINIATURES["llava"].model()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").write_text("a file of that name does not hide the word")
    assert accelerate(model, "paper").plan == mini_row
    refusal(lambda: accelerate(MINIATURES["qwen2.5-vl"].model(), "paper"), "no plan for a qwen2_5_vl with 6 layers")


def test_accelerate_takes_a_plan_in_words():
    model = MINIATURES["llava"].model()
    assert accelerate(model, "ivr:2:0.5,freeze:4").plan == named_plan("ivr:2:0.5,freeze:4", model)
    refusal(lambda: accelerate(model, "melt:2:0.5"), "starts with 'melt': choose ivr")
    refusal(lambda: accelerate(model, "ivr:6:0.5"), "the model has 6 layers")
    refusal(lambda: accelerate(model, ""), "starts with ''")


@pytest.mark.parametrize("path", ["nowhere.json", "folder/nowhere", "./ivr:2:0.5"])
def test_what_looks_like_a_path_is_one(path):
    refusal(lambda: accelerate(MINIATURES["llava"].model(), path), f"{path.removeprefix('./')} does not exist")


def test_a_profile_may_have_any_name_that_exists(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ivr:2:0.5").write_text("{}")
    refusal(lambda: accelerate(MINIATURES["llava"].model(), "ivr:2:0.5"), "no HalfV profile")


@pytest.mark.parametrize("name", ["qwen3-vl-8b", "QWEN3-VL-4B", "mid", "Qwen/Qwen2-VL-7B-Instruct"])
def test_a_name_without_a_row_is_refused_before_anything_is_loaded(name):
    refusal(lambda: names.expect_paper_plan(name), f"the paper has no plan for {name}, only for {ROWS}")


def test_a_name_that_has_a_row_or_says_nothing_is_let_pass():
    for name in (*TABLE_9, *ALIASES, "some/folder", "tiny-llava", ""):
        names.expect_paper_plan(name)
