"""Folders in the format of the hub's official checkpoints load, also where torchvision is missing."""

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from halfv_accel import load_model, processors
from halfv_accel.adapters import FAMILIES
from halfv_accel.prompts import chat_inputs
from halfv_data import scenes
from tiny_vlm.llava import TinyLlava

from .hub import HUB, PINPOINTS, write
from .refusing import refusal

FIRST, SECOND = (scene.image for scene in scenes(2, seed=0))
PICTURES = [FIRST, SECOND.resize((192, 96)), Image.new("RGB", (64, 160), "red")]
WATCHING = sorted(name for name in HUB if "Qwen" in name or "Video" in name)
PATCHES = {"Qwen2VLForConditionalGeneration": 14, "Qwen3VLForConditionalGeneration": 16}

without_torchvision = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed here")


def test_every_family_has_a_hub_folder():
    assert set(HUB) == set(FAMILIES)


def test_the_stock_processor_comes_back(loaded):
    model, processor = loaded
    architecture = type(model).__name__
    assert type(processor).__name__ == HUB[architecture].processor
    assert is_torchvision_available() or isinstance(processor, processors.PicturesOnly) == (architecture in WATCHING)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_pictures_and_a_question_reach_the_model(loaded, count):
    model, processor = loaded
    inputs = chat_inputs(processor, PICTURES[:count], "What color is the star?")
    assert ((inputs["input_ids"] == model.config.image_token_id).sum() > 0) == (count > 0)
    with torch.no_grad():
        logits = model(**inputs).logits  # raises unless there are as many placeholders as visual features
        answer = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2)
    assert torch.isfinite(logits).all()
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 2


def test_a_processor_saved_again_prepares_the_same(loaded, hub, tmp_path):
    model, processor = loaded
    processor.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(hub(type(model).__name__) / name, tmp_path)
    _, again = load_model(tmp_path)
    mine, wanted = (chat_inputs(each, PICTURES, "What color is the star?") for each in (again, processor))
    assert set(mine) == set(wanted)
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("architecture", "side"), PATCHES.items())
def test_qwen_cuts_pictures_into_patches_in_blocks_of_four(hub, architecture, side):
    _, processor = load_model(hub(architecture))
    pixels = torch.randint(0, 256, (6 * side, 4 * side, 3), dtype=torch.uint8)
    inputs = chat_inputs(processor, [Image.fromarray(pixels.numpy())], "Where?")
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 4]]
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 6 * 4 // 4
    assert inputs["mm_token_type_ids"].sum() == 6 * 4 // 4
    patches = inputs["pixel_values"].view(3, 2, 2, 2, 3, 2, side, side)  # rows and columns of blocks, then inside one
    assert torch.equal(patches[..., 0, :, :], patches[..., 1, :, :])  # a picture is a video of two equal frames
    put_together = patches[..., 0, :, :].permute(4, 0, 2, 5, 1, 3, 6).reshape(3, 6 * side, 4 * side)
    assert torch.allclose(put_together, pixels.permute(2, 0, 1) / 127.5 - 1, atol=1e-6)


TILES = [((112, 56), 1 + 2, 16 + 4 * 8 + 4), ((56, 112), 1 + 2, 16 + 8 * 4 + 8), ((112, 112), 1 + 4, 16 + 64 + 8)]


@pytest.mark.parametrize(("size", "tiles", "tokens"), TILES)
def test_llava_next_tiles_a_picture_and_ends_each_row(hub, size, tiles, tokens):
    """One view of the whole, tiles of 4 x 4 tokens, and a newline token behind each row of the tiled picture."""
    model, processor = load_model(hub("LlavaNextForConditionalGeneration"))
    assert list(size[::-1]) in PINPOINTS
    inputs = chat_inputs(processor, [Image.new("RGB", size)], "Where?")
    assert inputs["pixel_values"].shape == (1, tiles, 3, 56, 56)
    assert inputs["image_sizes"].tolist() == [list(size[::-1])]
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == tokens


@without_torchvision
@pytest.mark.parametrize("architecture", WATCHING)
def test_a_video_without_torchvision_is_refused(hub, architecture):
    _, processor = load_model(hub(architecture))
    video = torch.zeros(4, 3, 56, 56)
    turn = [{"role": "user", "content": [{"type": "video", "video": video}]}]
    refusal(lambda: processor(text=[processor.video_token], videos=[video]), "videos need torchvision.*pip install")
    prompt = dict(chat_template=processor.video_token, tokenize=True, return_dict=True)
    refusal(lambda: processor.apply_chat_template(turn, **prompt), "videos need torchvision.*give pictures")


@without_torchvision
def test_what_only_torchvision_could_load_names_it(tmp_path, hub):
    """A LLaVA whose processor files are another family's: no half of them would prepare what it takes."""
    TinyLlava().build().save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(hub("Qwen2_5_VLForConditionalGeneration") / name, tmp_path)
    refusal(lambda: load_model(tmp_path), r"torchvision.*\): install torchvision, with: pip install torchvision")


def test_a_missing_tokenizer_is_what_the_message_is_about(tmp_path, hub):
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        shutil.copy(hub("VideoLlavaForConditionalGeneration") / name, tmp_path)
    refusal(lambda: load_model(tmp_path), "no processor that can be loaded.*save the processor")


def test_a_folder_with_the_processor_s_parts_in_one_file(tmp_path, hub):
    """As transformers 5 saves a stock processor again where torchvision is there: the video half in the same file."""
    shutil.copytree(hub("Qwen3VLForConditionalGeneration"), tmp_path, dirs_exist_ok=True)
    parts = {}
    for kind, name in (("image", "preprocessor_config.json"), ("video", "video_preprocessor_config.json")):
        parts[f"{kind}_processor"] = json.loads((tmp_path / name).read_text())
        (tmp_path / name).unlink()
    write(tmp_path / "processor_config.json", {"processor_class": "Qwen3VLProcessor", **parts})
    model, processor = load_model(tmp_path)
    assert model(**chat_inputs(processor, PICTURES, "Where?")).logits.isfinite().all()


def test_long_reasons_are_cut_between_sentences_or_words():
    assert processors.brief(OSError("\nNo luck. Try again.\nLater.")) == "No luck"
    assert processors.brief(OSError("")) == "OSError"
    words = processors.brief(OSError("word " * 100))
    assert len(words) <= 160 and words.endswith("word ...")
