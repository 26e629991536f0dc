"""Pictures and questions that a processor cannot take are refused in one line."""

import re

import pytest
from PIL import Image

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
