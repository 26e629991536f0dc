"""Folders in the format of the hub's own Qwen2.5-VL checkpoints load, also where torchvision is missing."""

import json

import pytest
import torch
from transformers.utils import is_torchvision_available

from halfv_accel import load_model, processors
from halfv_accel.prompts import chat_inputs
from halfv_data import scenes
from tiny_vlm.llava import TinyLlava
from tiny_vlm.qwen import CHAT_TEMPLATE, TinyQwen

from .refusing import refusal

without_torchvision = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed here")


def as_on_the_hub(folder, layout):
    """A tiny Qwen2.5-VL, its processor described as Qwen describes it: by class, with a video half."""
    family = TinyQwen()
    processor = family.processor()
    family.build().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "processor_config.json").unlink()
    images = processor.image_processor.to_dict() | {"image_processor_type": "Qwen2VLImageProcessor"}
    if layout == "hub":
        size = images.pop("size")
        images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        write(folder / "preprocessor_config.json", images | {"processor_class": "Qwen2_5_VLProcessor"})
        write(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    else:
        videos = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 8}
        described = {"image_processor": images, "video_processor": videos, "processor_class": "Qwen2_5_VLProcessor"}
        write(folder / "processor_config.json", described)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings = {key: value for key, value in settings.items() if key not in ("image_token", "video_token")}
    write(folder / "tokenizer_config.json", settings | {"processor_class": "Qwen2_5_VLProcessor"})
    return processor


def write(path, content):
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("layout", ["hub", "saved again by transformers 5"])
def test_a_hub_folder_gives_the_inputs_of_the_embedded_processor(tmp_path, layout):
    own = as_on_the_hub(tmp_path, layout)
    model, processor = load_model(tmp_path)
    first, second = scenes(2, seed=0)
    for pictures in ([first.image], [first.image.resize((96, 192)), second.image]):
        mine, wanted = (chat_inputs(each, pictures, first.question) for each in (processor, own))
        assert set(mine) == set(wanted)
        assert all(torch.equal(mine[name], wanted[name]) for name in wanted)
        assert model.generate(**mine, max_new_tokens=1).shape[0] == 1


@without_torchvision
def test_placeholders_in_a_question_are_seen_by_the_stand_in_too(tmp_path):
    as_on_the_hub(tmp_path, "hub")
    _, processor = load_model(tmp_path)
    for token in ("<|image_pad|>", "<|video_pad|>"):
        refusal(lambda token=token: chat_inputs(processor, [], f"What is {token}?"), "take it out")


@without_torchvision
def test_what_only_torchvision_could_load_names_it(tmp_path):
    TinyLlava().build().save_pretrained(tmp_path)
    as_on_the_hub(tmp_path / "qwen", "saved again by transformers 5")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "qwen" / name).rename(tmp_path / name)
    refusal(lambda: load_model(tmp_path), r"the Torchvision library .* environment\): .*pip install torchvision")


def test_long_reasons_are_cut_between_sentences_or_words():
    assert processors.brief(OSError("\nNo luck. Try again.\nLater.")) == "No luck"
    assert processors.brief(OSError("")) == "OSError"
    words = processors.brief(OSError("word " * 100))
    assert len(words) <= 160 and words.endswith("word ...")
