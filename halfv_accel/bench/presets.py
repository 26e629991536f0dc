"""Real architectures without their checkpoints: how fast a model is does not depend on what its weights are,
but for the choice of tokens on a CPU, which is quicker or slower by how states cluster.

The numbers are those of the published config.json files; the parameter counts that follow from them are tested.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from halfv_accel.errors import HalfVError
from halfv_accel.plan import Plan, halfv_plan

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


@dataclass(frozen=True)
class Preset:
    """An architecture of true size, and the paper's plan for it.

    Parameters
    ----------
    config : callable
        Makes the transformers config.
    plan : Plan, optional
        The model's row of Table 9.
    source : str
        Where the plan is from.
    """

    config: Callable[[], Any]
    plan: Plan | None = None
    source: str = "no row of Table 9"


VICUNA_PLAN = halfv_plan(ivr_layer=3, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=15)
NEXT_PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.5, anchor_ratio=0.1, ssr_mode="freeze", ssr_layer=16)
QWEN_PLAN = halfv_plan(
    ivr_layer=2, ivr_retention=0.25, anchor_ratio=0.1, ssr_mode="sparse", ssr_layer=21, ssr_retention=0.05
)
PRESETS = {
    "llava-1.5-7b": Preset(lambda: llava(4096, 11008, 32, 32), VICUNA_PLAN, "Table 9"),
    "llava-1.5-13b": Preset(lambda: llava(5120, 13824, 40, 40), VICUNA_PLAN, "Table 9"),
    "llava-next-7b": Preset(llava_next, NEXT_PLAN, "Table 9"),
    "qwen2.5-vl-7b": Preset(qwen2_5_vl, QWEN_PLAN, "Table 9"),
    "qwen2-vl-7b": Preset(qwen2_vl, QWEN_PLAN, "Table 9's row of Qwen2.5-VL-7B; this model is not in the paper"),
    "qwen3-vl-4b": Preset(qwen3_vl),
    "mid": Preset(middling),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises
    ------
    HalfVError
        If there is none.
    """
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name, PRESETS, n=1)
    guess = f"did you mean {close[0]}? Else " if close else ""
    raise HalfVError(f"there is no preset '{name}' for random weights: {guess}give one of {', '.join(PRESETS)}")


def build(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    side: int | None = None,
) -> PreTrainedModel:
    """A preset with random weights.

    Parameters
    ----------
    side : int, optional
        LLaVA-1.5 and mid: visual tokens along a picture's side, instead of the checkpoint's 24. Only the tower's
        position embeddings follow from it.
    """
    config = preset(name).config()
    if side is not None and config.model_type == "llava":
        config.vision_config.image_size = side * config.vision_config.patch_size
    return assemble(config, device, dtype, seed)


def assemble(
    config: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """A model with random weights as transformers initialises them, made where they stay."""
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
