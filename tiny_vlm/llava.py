"""tiny-llava: the LLaVA architecture at 3 M parameters (CLIP tower with CLS token, MLP projector, Llama)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from halfv_data.drawing import SIZE
from tiny_vlm.family import IMAGE_SIDE, VISUAL_TOKENS, compile_layers, fan_in_init
from tiny_vlm.vocabulary import build_tokenizer

SPECIAL = ["<pad>", "</s>", "<image>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if m['role'] == 'user' %} {% else %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class TinyLlava:
    name = "tiny-llava"
    image_token = "<image>"
    prefix = ("USER: ", "\n")
    question_end = " ASSISTANT:"
    answer_end = "</s>"

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return build_tokenizer(SPECIAL, pad="<pad>", eos="</s>", named={"image_token": "<image>"})

    def processor(self) -> LlavaProcessor:
        size = {"height": SIZE, "width": SIZE}
        images = CLIPImageProcessorPil(
            size=size, do_center_crop=False, crop_size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3
        )
        return LlavaProcessor(
            image_processor=images,
            tokenizer=self.tokenizer(),
            patch_size=SIZE // IMAGE_SIDE,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )

    def build(self) -> LlavaForConditionalGeneration:
        tokenizer = self.tokenizer()
        pad, eos, image = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL)
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=6,
                num_attention_heads=4,
                image_size=SIZE,
                patch_size=SIZE // IMAGE_SIDE,
                projection_dim=128,
            ),
            text_config=LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=320,
                num_hidden_layers=10,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=4096,
                rms_norm_eps=1e-6,
                bos_token_id=None,
                eos_token_id=eos,
                pad_token_id=pad,
                rope_parameters=dict(rope_type="default", rope_theta=1000.0),
            ),
            image_token_index=image,
            # LLaVA-1.5 reads the last but one layer of a pretrained tower; this tower is trained for its last.
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )
        model = LlavaForConditionalGeneration(config)
        fan_in_init(model, {"vision_tower": 6, "language_model": 10})
        _init_positions(model)
        return model

    def speed_up(self, model: LlavaForConditionalGeneration) -> None:
        """Training only: compile both stacks."""
        compile_layers(_clip(model).encoder.layers)
        compile_layers(model.model.language_model.layers)

    def features(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
        states = model.model.vision_tower(pixel_values).last_hidden_state[:, 1:]  # without CLS
        return model.model.multi_modal_projector(states).view(-1, VISUAL_TOKENS, states.shape[-1])

    def prefix_positions(self, before: int, after: int) -> Tensor:
        return torch.arange(before + VISUAL_TOKENS + after)[None]


def _clip(model: LlavaForConditionalGeneration) -> Any:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)


@torch.no_grad()
def _init_positions(model: LlavaForConditionalGeneration) -> None:
    """Start the learned position table at 2-D sines, so that neighbouring patches can find each other from step one."""
    embeddings = _clip(model).embeddings
    table = embeddings.position_embedding.weight  # [1 + patches, width]
    frequencies = math.pi / torch.tensor([2.0 ** (i / 2) for i in range(table.shape[1] // 4)]).clamp(max=24)
    axis = torch.arange(IMAGE_SIDE)[:, None] * frequencies[None]
    axis = torch.cat([axis.sin(), axis.cos()], dim=1)  # [side, width / 2]
    rows = axis[:, None].expand(IMAGE_SIDE, IMAGE_SIDE, -1)
    columns = axis[None].expand(IMAGE_SIDE, IMAGE_SIDE, -1)
    table[1:] = 0.5 * torch.cat([rows, columns], dim=-1).flatten(0, 1)
    table[0] = 0
