"""What the recipe needs to know of a model family; ``qwen.py`` and ``llava.py`` hold one each."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

IMAGE_SIDE = 12  # visual tokens per side: 192 px over 16 px a token
VISUAL_TOKENS = IMAGE_SIDE**2


class Family(Protocol):
    """One architecture: how it is built, prompted, and run over equal-sized images in training."""

    name: str
    image_token: str
    prefix: tuple[str, str]  # text before and after the visual tokens
    question_end: str  # text between question and answer
    answer_end: str

    def tokenizer(self) -> PreTrainedTokenizerFast: ...
    def processor(self) -> ProcessorMixin: ...
    def build(self) -> PreTrainedModel: ...
    def speed_up(self, model: PreTrainedModel) -> None: ...
    def features(self, model: PreTrainedModel, pixel_values: Tensor) -> Tensor: ...
    def prefix_positions(self, before: int, after: int) -> Tensor: ...


def compile_layers(layers: nn.ModuleList) -> None:
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)


def fan_in_init(model: nn.Module, depth_of: dict[str, int]) -> None:
    """Normal weights with variance 1 / fan-in; residual outputs shrunk by sqrt(2 x depth), as in GPT-2.

    ``depth_of`` maps a part of a parameter's name to the depth of the stack that it belongs to.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            fan_in = parameter[0].numel()
            std = 1 / math.sqrt(fan_in)
            if "embed_tokens" in name:
                std = 0.3
            elif "lm_head" in name:
                std *= 0.3
            elif name.endswith(
                ("o_proj.weight", "down_proj.weight", "out_proj.weight", "attn.proj.weight", "fc2.weight")
            ):
                depth = next(depth for part, depth in depth_of.items() if part in name)
                std /= math.sqrt(2 * depth)
            nn.init.normal_(parameter, 0.0, std)
