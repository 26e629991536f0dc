"""Random-weight models of each family, small enough to build in every test run, and prompts for them.

Weights are drawn wide enough that attention is not uniform: with transformers' own initialisation every visual token
scores alike, and a wrong selection would go unnoticed.
"""

from __future__ import annotations

import copy

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

IMAGE, VIDEO, START, END, PAD = 1, 2, 3, 4, 0
LAYERS, WIDTH, VOCABULARY = 6, 32, 64


@torch.no_grad()
def widen(model):
    """Draw all weights anew at 1 / sqrt(fan in), and biases and norms around their usual values."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.get_input_embeddings().weight.normal_(0, 1)
    return model.eval()


class Miniature:
    """One family: `model(attention)`, `prompt(...)`, `batch(prompts)`."""

    image = IMAGE

    def __init__(self):
        self._built = {}

    def model(self, attention="sdpa"):
        """The same weights under either attention implementation."""
        if attention not in self._built:
            base = widen(self.build()) if not self._built else copy.deepcopy(next(iter(self._built.values())))
            base.set_attn_implementation(attention)
            self._built[attention] = base
        return self._built[attention]

    def batch(self, prompts, side="left"):
        """Several prompts as one input, padded."""
        width = max(len(prompt["ids"]) for prompt in prompts)
        rows = [prompt["ids"] for prompt in prompts]
        left = [width - len(row) if side == "left" else 0 for row in rows]
        ids = torch.full((len(rows), width), PAD)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, left[row] : left[row] + len(tokens)] = torch.tensor(tokens)
            mask[row, left[row] : left[row] + len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask, **self.features(prompts, ids)}


class MiniLlava(Miniature):
    name = "llava"

    def build(self):
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=20,
            patch_size=4,
            projection_dim=16,
        )
        text = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=PAD,
        )
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
        return LlavaForConditionalGeneration(config)

    def prompt(self, seed, pictures=1, question=6):
        """Text, pictures of 25 visual tokens each with text between them, and a question."""
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, VOCABULARY, (3,), generator=draw).tolist()
        for _ in range(pictures):
            ids += [IMAGE] * 25 + torch.randint(5, VOCABULARY, (2,), generator=draw).tolist()
        ids += torch.randint(5, VOCABULARY, (question,), generator=draw).tolist()
        return {"ids": ids, "pixels": torch.randn(pictures, 3, 20, 20, generator=draw)}

    def features(self, prompts, ids):
        pixels = torch.cat([prompt["pixels"] for prompt in prompts])
        return {"pixel_values": pixels} if len(pixels) else {}


class MiniQwen(Miniature):
    name = "qwen2.5-vl"

    def build(self):
        text = dict(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=PAD,
            rope_parameters=dict(rope_type="default", rope_theta=100.0, mrope_section=[1, 1, 2]),
        )
        vision = dict(
            depth=2,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            patch_size=4,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=16,
            out_hidden_size=WIDTH,
            fullatt_block_indexes=[1],
        )
        config = Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )
        return Qwen2_5_VLForConditionalGeneration(config)

    def prompt(self, seed, pictures=1, question=6):
        """As for LLaVA, with pictures of different sizes: 20, 12 or 30 visual tokens."""
        draw = torch.Generator().manual_seed(seed)
        grids = [(1, 8, 10), (1, 6, 8), (1, 10, 12)][:pictures] if pictures != 1 else [(1, 8, 10)]
        ids = torch.randint(5, VOCABULARY, (3,), generator=draw).tolist()
        for _, rows, columns in grids:
            ids += [START, *[IMAGE] * (rows * columns // 4), END]
        ids += torch.randint(5, VOCABULARY, (question,), generator=draw).tolist()
        patches = sum(rows * columns for _, rows, columns in grids)
        return {"ids": ids, "pixels": torch.randn(patches, 96, generator=draw), "grids": grids}

    def features(self, prompts, ids):
        kinds = {"mm_token_type_ids": (ids == IMAGE).long()}
        grids = [grid for prompt in prompts for grid in prompt["grids"]]
        if not grids:
            return kinds
        pixels = torch.cat([prompt["pixels"] for prompt in prompts])
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids), **kinds}
