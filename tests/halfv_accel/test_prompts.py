"""One turn, as each family was trained to read it; what a processor cannot take is refused in one line."""

import re

import pytest
import torch
from PIL import Image

from halfv_accel import load_model
from halfv_accel.prompts import chat_inputs
from tiny_vlm.llava import TinyLlava
from tiny_vlm.qwen import TinyQwen

from .refusing import refusal

FAMILIES = {family.name: family for family in (TinyLlava(), TinyQwen())}
TOKENS = [("tiny-llava", "<image>"), ("tiny-qwen2.5-vl", "<|image_pad|>"), ("tiny-qwen2.5-vl", "<|video_pad|>")]
SQUARE = Image.new("RGB", (192, 192), "red")


@pytest.mark.parametrize("pictures", [[], [SQUARE], [SQUARE, SQUARE]])
@pytest.mark.parametrize(("name", "token"), TOKENS)
def test_a_placeholder_in_the_question(name, token, pictures):
    processor = FAMILIES[name].processor()
    refusal(lambda: chat_inputs(processor, pictures, f"Where is {token}?"), f"holds {re.escape(token)}.*take it out")


def test_the_other_family_s_placeholder_is_text():
    question = "Where is <|image_pad|>?"
    assert "pixel_values" in chat_inputs(FAMILIES["tiny-llava"].processor(), [SQUARE], question)


def test_a_picture_that_is_too_thin():
    processor = FAMILIES["tiny-qwen2.5-vl"].processor()
    thin = Image.new("RGB", (3000, 4))
    refusal(lambda: chat_inputs(processor, [thin], "Where?"), r"could not be prepared \(absolute aspect ratio .*\): ")


VICUNA = ("USER: <image>\n<image>\nWhere? ASSISTANT:", "<s>")
CHATML = ("<|im_start|>user\n" + 2 * "<|vision_start|><|image_pad|><|vision_end|>" + "Where?<|im_end|>\n", "")
TURNS = {
    "LlavaForConditionalGeneration": VICUNA,
    "VideoLlavaForConditionalGeneration": VICUNA,
    "LlavaNextForConditionalGeneration": ("[INST] <image>\n<image>\nWhere? [/INST]", "<s>"),
    "Qwen2VLForConditionalGeneration": (CHATML[0] + "<|im_start|>assistant\n", ""),
    "Qwen2_5_VLForConditionalGeneration": (CHATML[0] + "<|im_start|>assistant\n", ""),
    "Qwen3VLForConditionalGeneration": (CHATML[0] + "<|im_start|>assistant\n", ""),
}


def test_the_turn_of_each_family(loaded):
    model, processor = loaded
    prompt, start = TURNS[type(model).__name__]
    wanted = processor(images=[SQUARE, SQUARE], text=[prompt], return_tensors="pt")["input_ids"]
    found = chat_inputs(processor, [SQUARE, SQUARE], "Where?")["input_ids"]
    assert torch.equal(found, wanted)
    assert processor.decode(found[0]).startswith(start)


def test_llava_without_a_template_gets_the_one_it_was_trained_on(hub):
    _, processor = load_model(hub("LlavaForConditionalGeneration"))
    with_template = chat_inputs(processor, [SQUARE, SQUARE], "Where?")
    processor.chat_template = None
    assert torch.equal(chat_inputs(processor, [SQUARE, SQUARE], "Where?")["input_ids"], with_template["input_ids"])


@pytest.mark.parametrize("architecture", ["LlavaNextForConditionalGeneration", "Qwen2VLForConditionalGeneration"])
def test_without_a_template_nobody_knows_what_others_were_trained_on(hub, architecture):
    _, processor = load_model(hub(architecture))
    processor.chat_template = None
    refusal(lambda: chat_inputs(processor, [SQUARE], "Where?"), "has no chat template: set processor.chat_template")


def test_the_tokenizer_s_template_serves_if_it_knows_pictures(hub):
    _, processor = load_model(hub("Qwen2VLForConditionalGeneration"))
    wanted = chat_inputs(processor, [SQUARE], "Where?")["input_ids"]
    processor.tokenizer.chat_template, processor.chat_template = processor.chat_template, None
    assert torch.equal(chat_inputs(processor, [SQUARE], "Where?")["input_ids"], wanted)
    processor.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    refusal(lambda: chat_inputs(processor, [SQUARE], "Where?"), "has no chat template")


def test_a_template_that_writes_the_start_token_gets_no_second_one(hub):
    _, processor = load_model(hub("LlavaForConditionalGeneration"))
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    ids = chat_inputs(processor, [SQUARE], "Where?")["input_ids"]
    assert (ids == processor.tokenizer.bos_token_id).sum() == 1


def test_every_family_s_placeholders_in_a_question(loaded):
    model, processor = loaded
    for name in ("image_token_id", "video_token_id"):
        if (token_id := getattr(model.config, name, None)) is not None:
            token = processor.tokenizer.convert_ids_to_tokens(token_id)
            refusal(lambda token=token: chat_inputs(processor, [], f"What is {token}?"), "take it out")
