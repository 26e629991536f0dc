"""Architectures of true size, as transformers configs: the numbers are those of the published config.json files.

Without their checkpoints they still serve: how fast a model is does not depend on what its weights are (but for the
choice of tokens on a CPU, which is quicker or slower by how states cluster), and a model's sizes say which it is.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

PATCH = 14  # pixels, CLIP and Qwen2
CLIP_LARGE = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=PATCH,
    projection_dim=768,
)
SMALL_TOWER = dict(
    hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, projection_dim=256
)
QWEN_IDS = dict(image_token_id=151655, video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653)


def llava(width: int, intermediate: int, layers: int, heads: int) -> LlavaConfig:
    """LLaVA-1.5: CLIP ViT-L/14 at 336 pixels in front of Vicuna."""
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    return LlavaConfig(vision_config=CLIPVisionConfig(**CLIP_LARGE), text_config=text, image_token_index=32000)


def llava_next() -> LlavaNextConfig:
    """LLaVA-NeXT (v1.6) with Mistral-7B."""
    text = MistralConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="default", rope_theta=1e6),
        sliding_window=None,
    )
    return LlavaNextConfig(vision_config=CLIPVisionConfig(**CLIP_LARGE), text_config=text, image_token_index=32000)


def qwen2_text() -> dict[str, Any]:
    """The Qwen2-7B decoder of Qwen2-VL and Qwen2.5-VL."""
    return dict(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
    )


def qwen2_5_vl() -> Qwen2_5_VLConfig:
    vision = dict(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=3584,
        patch_size=PATCH,
        window_size=112,
        fullatt_block_indexes=[7, 15, 23, 31],
    )
    return Qwen2_5_VLConfig(text_config=qwen2_text(), vision_config=vision, tie_word_embeddings=False, **QWEN_IDS)


def qwen2_vl() -> Qwen2VLConfig:
    vision = dict(depth=32, embed_dim=1280, hidden_size=3584, num_heads=16, mlp_ratio=4, patch_size=PATCH)
    return Qwen2VLConfig(text_config=qwen2_text(), vision_config=vision, tie_word_embeddings=False, **QWEN_IDS)


def qwen3_vl() -> Qwen3VLConfig:
    text = dict(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=262144,
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[24, 20, 20], mrope_interleaved=True),
    )
    vision = dict(
        depth=24,
        hidden_size=1024,
        intermediate_size=4096,
        num_heads=16,
        out_hidden_size=2560,
        patch_size=16,
        num_position_embeddings=2304,
        deepstack_visual_indexes=[5, 11, 17],
    )
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **QWEN_IDS)


def middling(width: int = 1024, layers: int = 12, side: int = 24) -> LlavaConfig:
    """A LLaVA that a laptop's CPU can run: Llama decoder, heads of 64, a small tower, side x side tokens a picture."""
    heads = max(1, width // 64)
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=1000,
    )
    vision = CLIPVisionConfig(image_size=side * PATCH, patch_size=PATCH, **SMALL_TOWER)
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=1, vision_feature_layer=-1)
