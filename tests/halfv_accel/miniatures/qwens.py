"""The Qwen families: pictures and videos of any size, multimodal positions."""

from __future__ import annotations

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from .base import END, IMAGE, START, VIDEO, WIDTH, Miniature, joined, text_options, words


class Qwen(Miniature):
    """Pictures of 20, 12 or 30 visual tokens, and videos of two frames of 9. Two patches by two make a token."""

    videos = True
    config: type
    architecture: type

    def build(self):
        config = self.config(
            text_config=self.text(),
            vision_config={"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, **self.vision()},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )
        return self.architecture(config)

    def text(self):
        """Options of the language model."""
        raise NotImplementedError

    def vision(self):
        """Options of the vision tower."""
        raise NotImplementedError

    def clip(self, draw, frames, tokens):
        """The ids of one video."""
        return [START, *[VIDEO] * (frames * tokens), END]

    def prompt(self, seed, pictures=1, question=6, videos=0):
        draw = torch.Generator().manual_seed(seed)
        images = [(1, 8, 10), (1, 6, 8), (1, 10, 12)][:pictures]  # frames, rows and columns of patches
        clips = [(2, 6, 6)] * videos
        ids = words(draw, 3)
        for frames, rows, columns in clips:
            ids += self.clip(draw, frames, rows * columns // 4)
        for _, rows, columns in images:
            ids += [START, *[IMAGE] * (rows * columns // 4), END]
        ids += words(draw, question)
        images, clips = (torch.tensor(grids, dtype=torch.long).view(-1, 3) for grids in (images, clips))
        return {
            "ids": ids,
            "pixel_values": torch.randn(int(images.prod(1).sum()), 96, generator=draw),
            "image_grid_thw": images,
            "pixel_values_videos": torch.randn(int(clips.prod(1).sum()), 96, generator=draw),
            "video_grid_thw": clips,
        }

    def features(self, prompts, ids):
        visual = {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
            visual.update(joined(prompts, name))
        return visual


def positions(*section):
    return dict(rope_type="default", rope_theta=100.0, mrope_section=list(section))


class MiniQwen2(Qwen):
    name = "qwen2-vl"
    config, architecture = Qwen2VLConfig, Qwen2VLForConditionalGeneration

    def text(self):
        return dict(text_options(1), rope_parameters=positions(1, 1, 2))

    def vision(self):
        return dict(depth=2, embed_dim=16, hidden_size=WIDTH, num_heads=2, mlp_ratio=2)


class MiniQwen(Qwen):
    """Qwen2.5-VL: the positions of a video's frames are further apart the more time lies between them."""

    name = "qwen2.5-vl"
    config, architecture = Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def text(self):
        return dict(text_options(2), rope_parameters=positions(1, 1, 2))

    def vision(self):
        tower = dict(depth=2, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=WIDTH)
        return dict(tower, window_size=16, fullatt_block_indexes=[1])


class MiniQwen3(Qwen):
    """Qwen3-VL: text stands between the frames of a video, and DeepStack adds to the first three decoder layers."""

    name = "qwen3-vl"
    config, architecture = Qwen3VLConfig, Qwen3VLForConditionalGeneration

    def text(self):
        return dict(text_options(2), head_dim=16, rope_parameters=positions(4, 2, 2))

    def vision(self):
        tower = dict(depth=3, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=WIDTH)
        return dict(tower, num_position_embeddings=16, deepstack_visual_indexes=[0, 1, 2])

    def clip(self, draw, frames, tokens):
        ids = []
        for _ in range(frames):
            ids += [*words(draw, 2), START, *[VIDEO] * tokens, END]
        return ids
