"""tiny-qwen2.5-vl: the Qwen2.5-VL architecture at 2.5 M parameters (windowed vision tower, M-RoPE, grouped queries)."""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from halfv_data.drawing import SIZE
from tiny_vlm.family import IMAGE_SIDE, VISUAL_TOKENS, compile_layers, fan_in_init
from tiny_vlm.vocabulary import build_tokenizer

PATCH, MERGE = 8, 2
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TinyQwen:
    name = "tiny-qwen2.5-vl"
    image_token = "<|image_pad|>"
    prefix = ("<|im_start|>user\n<|vision_start|>", "<|vision_end|>")
    question_end = "<|im_end|>\n<|im_start|>assistant\n"
    answer_end = "<|im_end|>"

    def tokenizer(self) -> PreTrainedTokenizerFast:
        named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": SPECIAL[3]}
        return build_tokenizer(SPECIAL, pad="<|endoftext|>", eos="<|im_end|>", named=named)

    def processor(self) -> PaddleOCRVLProcessor:
        """Image processor and tokenizer in one.

        ``Qwen2_5_VLProcessor`` cannot be constructed without torchvision (its video half needs it). PaddleOCR-VL's
        processor expands image placeholders by the same rule and has no video half, so the checkpoint loads anywhere.
        """
        pixels = SIZE * SIZE
        images = Qwen2VLImageProcessorPil(
            patch_size=PATCH,
            merge_size=MERGE,
            temporal_patch_size=2,
            size={"shortest_edge": pixels, "longest_edge": pixels},
            image_mean=[0.5] * 3,
            image_std=[0.25] * 3,
        )
        return PaddleOCRVLProcessor(image_processor=images, tokenizer=self.tokenizer(), chat_template=CHAT_TEMPLATE)

    def build(self) -> Qwen2_5_VLForConditionalGeneration:
        tokenizer = self.tokenizer()
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
        config = Qwen2_5_VLConfig(
            text_config=dict(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=320,
                num_hidden_layers=10,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=4096,
                rms_norm_eps=1e-6,
                bos_token_id=None,
                eos_token_id=ids["<|im_end|>"],
                pad_token_id=ids["<|endoftext|>"],
                # A small base, because positions within one picture differ by at most 12.
                rope_parameters=dict(rope_type="default", rope_theta=10.0, mrope_section=[2, 7, 7]),
            ),
            vision_config=dict(
                depth=4,
                hidden_size=96,
                intermediate_size=256,
                num_heads=3,
                patch_size=PATCH,
                spatial_merge_size=MERGE,
                temporal_patch_size=2,
                window_size=64,
                out_hidden_size=128,
                fullatt_block_indexes=[1, 3],
                hidden_act="silu",
            ),
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=False,
        )
        model = Qwen2_5_VLForConditionalGeneration(config)
        fan_in_init(model, {"visual": 4, "language_model": 10})
        return model

    def speed_up(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        """Training only: batch the windows (every picture has the same size), fold the two temporal copies, compile."""
        vision = model.model.visual
        vision.patch_embed.forward = MethodType(_folded_patch_embed, vision.patch_embed)
        for block in vision.blocks:
            block.attn.forward = MethodType(_equal_windows_attention, block.attn)
        compile_layers(vision.blocks)
        compile_layers(model.model.language_model.layers)

    def features(self, model: Qwen2_5_VLForConditionalGeneration, pixel_values: Tensor) -> Tensor:
        side = SIZE // PATCH
        count = pixel_values.shape[0] // side**2
        grid = torch.tensor([[1, side, side]] * count, device=pixel_values.device)
        return model.model.visual(pixel_values, grid_thw=grid).pooler_output.view(count, VISUAL_TOKENS, -1)

    def prefix_positions(self, before: int, after: int) -> Tensor:
        """M-RoPE positions [3, prefix]: text advances all three, a picture spreads over height and width."""
        text = torch.arange(before).expand(3, -1)
        rows, columns = torch.meshgrid(torch.arange(IMAGE_SIDE), torch.arange(IMAGE_SIDE), indexing="ij")
        picture = before + torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1)
        tail = before + IMAGE_SIDE + torch.arange(after).expand(3, -1)
        return torch.cat([text, picture, tail], dim=1)


def _equal_windows_attention(self, hidden_states, cu_seqlens, position_embeddings=None, **_):
    tokens, windows = hidden_states.shape[0], len(cu_seqlens) - 1
    q, k, v = self.qkv(hidden_states).reshape(tokens, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    q, k = modeling.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (t.reshape(windows, tokens // windows, self.num_heads, -1).transpose(1, 2) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return self.proj(mixed.transpose(1, 2).reshape(tokens, -1))


def _folded_patch_embed(self, hidden_states):
    """A still picture fills both temporal slots with the same pixels, so their weights add up."""
    weight = self.proj.weight.sum(2)  # [out, channels, patch, patch]
    pixels = hidden_states.view(-1, weight.shape[1], 2, PATCH * PATCH)[:, :, 0]
    return F.linear(pixels.flatten(1).to(weight.dtype), weight.flatten(1))
