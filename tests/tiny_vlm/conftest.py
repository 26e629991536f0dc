"""Random models of both families, as small checkpoints on disk and as loaded from there."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tiny_vlm.llava import TinyLlava
from tiny_vlm.packing import Packer
from tiny_vlm.qwen import TinyQwen


@pytest.fixture(scope="session", params=[TinyQwen, TinyLlava], ids=lambda family: family.name)
def tiny(request, tmp_path_factory):
    """family, packer, folder of a float32 checkpoint with random weights, and model and processor loaded from it."""
    torch.manual_seed(0)
    family = request.param()
    packer = Packer(family)
    folder = tmp_path_factory.mktemp(family.name) / family.name
    built = family.build()
    built.generation_config.eos_token_id = packer.tokenizer.convert_tokens_to_ids(family.answer_end)
    built.generation_config.pad_token_id = packer.tokenizer.pad_token_id
    built.save_pretrained(folder)
    packer.processor.save_pretrained(folder)
    return SimpleNamespace(
        family=family,
        packer=packer,
        folder=folder,
        model=AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval(),
        processor=AutoProcessor.from_pretrained(folder),
    )
