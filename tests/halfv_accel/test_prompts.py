"""One turn, as each family was trained to read it; what a processor cannot take is refused in one line."""

import re

import pytest
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.utils import is_torchvision_available

from halfv_accel import load_model
from halfv_accel.processors import VIDEO
from halfv_accel.prompts import batch_inputs, chat_inputs
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


@pytest.mark.parametrize("half", ["\ud800", "a\udc80b", "\udfff"])
def test_half_a_character_in_the_question(half):
    for family in FAMILIES.values():
        refusal(
            lambda family=family: chat_inputs(family.processor(), [SQUARE], half), "holds .u.*, half of a character"
        )


@pytest.mark.parametrize("question", ["a\0b", "\ufffe", "\U0010ffff", "\x1b[0m"])
def test_odd_characters_are_text(question):
    for family in FAMILIES.values():
        assert "pixel_values" in chat_inputs(family.processor(), [SQUARE], question)


@pytest.mark.parametrize(
    "error", [TypeError("no such mode"), IndexError("17"), ZeroDivisionError(), ValueError("thin")]
)
def test_however_a_processor_refuses_it_is_one_sentence(monkeypatch, error):
    processor = FAMILIES["tiny-llava"].processor()

    def refuses(*_, **__):
        raise error

    monkeypatch.setattr(type(processor.image_processor), "__call__", refuses)
    named = "thin" if isinstance(error, ValueError) else type(error).__name__
    refusal(lambda: chat_inputs(processor, [SQUARE], "Where?"), rf"could not be prepared \({named}.*\): give others")


# --------------------------------------------------------------------------------------------------------------- videos


class Watching:
    """A processor with a video half, as transformers has them where torchvision is; it keeps what it was told."""

    chat_template = "some"

    def get_attributes(self):
        return ["image_processor", "tokenizer", "video_processor"]

    def apply_chat_template(self, conversations, **_):
        self.told = conversations
        return BatchFeature({})


def test_a_video_is_told_after_the_pictures_and_before_the_question():
    processor = Watching()
    batch_inputs(processor, [([SQUARE], "What?", "a.mp4"), ([], "Where?", [SQUARE, SQUARE]), ([SQUARE], "Who?")])
    told = [[(part["type"], part[part["type"]]) for part in turn[0]["content"]] for turn in processor.told]
    assert told == [
        [("image", SQUARE), ("video", "a.mp4"), ("text", "What?")],
        [("video", [SQUARE, SQUARE]), ("text", "Where?")],
        [("image", SQUARE), ("text", "Who?")],
    ]


def test_where_videos_cannot_be_watched_a_sentence_says_why(loaded):
    _, processor = loaded
    watching = VIDEO in type(processor).__mro__[1].get_attributes()
    if watching and is_torchvision_available():
        pytest.skip("torchvision is installed here")
    reason = (
        "videos need torchvision, which is missing: pip" if watching else "Processor takes no videos: give pictures"
    )
    refusal(lambda: batch_inputs(processor, [([], "What?", [SQUARE, SQUARE])]), reason)
    assert "input_ids" in batch_inputs(processor, [([SQUARE], "What?", None)])
