"""Families with a CLIP tower and a Llama or Mistral decoder."""

from __future__ import annotations

import inspect

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaModel,
)

from .base import IMAGE, VIDEO, Miniature, joined, text_options, words


def clip(image_size):
    return CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=4,
        projection_dim=16,
    )


class MiniLlava(Miniature):
    """Pictures of 25 visual tokens each."""

    name = "llava"

    def build(self):
        config = LlavaConfig(
            vision_config=clip(20),
            text_config=LlamaConfig(**text_options(4)),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
        )
        return LlavaForConditionalGeneration(config)

    def prompt(self, seed, pictures=1, question=6, videos=0):
        assert not videos
        draw = torch.Generator().manual_seed(seed)
        ids = words(draw, 3)
        for _ in range(pictures):
            ids += [IMAGE] * 25 + words(draw, 2)
        ids += words(draw, question)
        return {"ids": ids, "pixel_values": torch.randn(pictures, 3, 20, 20, generator=draw)}

    def features(self, prompts, ids):
        return joined(prompts, "pixel_values")


class MiniLlavaNext(Miniature):
    """A picture is one small tile and two more in its own shape; the tokens of those are unpadded and end each row in
    a newline. Pictures of 30, 33 or 16 visual tokens."""

    def build(self):
        config = LlavaNextConfig(
            vision_config=clip(12),
            text_config=self.text(),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[12, 24], [24, 12]],
        )
        return LlavaNextForConditionalGeneration(config)

    def text(self):
        raise NotImplementedError

    def tokens(self, size):
        """Visual tokens of a picture, by the model's own packing."""
        core = self.model().model
        return int(core.pack_image_features([torch.zeros(3, 9, 1)], [size], "default", torch.zeros(1))[1])

    def prompt(self, seed, pictures=1, question=6, videos=0):
        assert not videos
        draw = torch.Generator().manual_seed(seed)
        sizes = [(12, 24)] if pictures == 1 else [(24, 12), (4, 24)][:pictures]  # height, width
        ids = words(draw, 3)
        for size in sizes:
            ids += [IMAGE] * self.tokens(size) + words(draw, 2)
        ids += words(draw, question)
        return {
            "ids": ids,
            "pixel_values": torch.randn(pictures, 3, 3, 12, 12, generator=draw),
            "image_sizes": torch.tensor(sizes, dtype=torch.long).view(-1, 2),
        }

    def features(self, prompts, ids):
        return {**joined(prompts, "pixel_values"), **joined(prompts, "image_sizes")}


class MiniLlavaNextMistral(MiniLlavaNext):
    name = "llava-next-mistral"

    def text(self):
        return MistralConfig(**text_options(2), sliding_window=None)


class MiniLlavaNextVicuna(MiniLlavaNext):
    name = "llava-next-vicuna"

    def text(self):
        return LlamaConfig(**text_options(4))


# Older releases, 5.17 among them, call Video-LLaVA's pictures by a name of their own.
_arguments = inspect.signature(VideoLlavaModel.get_image_features).parameters
PICTURES = "pixel_values_images" if "pixel_values_images" in _arguments else "pixel_values"


class MiniVideoLlava(Miniature):
    """Pictures of 16 visual tokens, and videos of two frames of 17: a video keeps the CLS token of each frame."""

    name = "video-llava"
    videos = True

    def build(self):
        config = VideoLlavaConfig(
            vision_config=clip(16),
            text_config=LlamaConfig(**text_options(2)),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            vision_feature_layer=-1,
        )
        return VideoLlavaForConditionalGeneration(config)

    def prompt(self, seed, pictures=1, question=6, videos=0):
        draw = torch.Generator().manual_seed(seed)
        ids = words(draw, 3)
        for visual in [[VIDEO] * 34] * videos + [[IMAGE] * 16] * pictures:
            ids += visual + words(draw, 2)
        ids += words(draw, question)
        return {
            "ids": ids,
            PICTURES: torch.randn(pictures, 3, 16, 16, generator=draw),
            "pixel_values_videos": torch.randn(videos, 2, 3, 16, 16, generator=draw),
        }

    def features(self, prompts, ids):
        return {**joined(prompts, PICTURES), **joined(prompts, "pixel_values_videos")}
