"""Tiny random checkpoints of every family, in folders laid out as the families' official repositories on the hub."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig
from transformers.models import llava, llava_next, qwen2_5_vl, qwen2_vl, qwen3_vl, video_llava

from tiny_vlm.qwen import CHAT_TEMPLATE as CHATML
from tiny_vlm.qwen import SPECIAL as QWEN_TOKENS
from tiny_vlm.vocabulary import build_tokenizer

from .miniatures import widen

LLAMA_TOKENS = ["<s>", "</s>", "<pad>", "<image>", "<video>"]
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{% for message in messages %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}"
    "{% endfor %}{{ ' [/INST]' }}{% endfor %}"
)
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
TEXT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)


def llama_tokenizer():
    """Starts a text with <s>, as Llama's does."""
    tokenizer = build_tokenizer(LLAMA_TOKENS, pad="<pad>", eos="</s>", named={})
    tokenizer.bos_token = "<s>"
    start = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = start
    return tokenizer


def qwen_tokenizer():
    return build_tokenizer(QWEN_TOKENS, pad="<|endoftext|>", eos="<|im_end|>", named={})


def llava_config(config_class, tokenizer, **more):
    """CLIP at 16 patches and a class token, in front of Llama."""
    image, video, pad = tokenizer.convert_tokens_to_ids(["<image>", "<video>", "<pad>"])
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=16)
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, pad_token_id=pad)
    return config_class(
        vision_config=CLIPVisionConfig(**sizes, image_size=56, patch_size=14),
        text_config=text,
        image_token_index=image,
        **{name: video if value == "<video>" else value for name, value in more.items()},
    )


def qwen_config(config_class, tokenizer, vision):
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": QWEN_TOKENS[3]}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    rope = dict(rope_type="default", rope_theta=100.0, mrope_section=[1, 1, 2])
    text = dict(TEXT, vocab_size=len(tokenizer), head_dim=8, rope_parameters=rope)
    for name in ("bos", "eos", "pad"):
        text[f"{name}_token_id"] = None
    end = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    return config_class(text_config=text, vision_config=vision, **ids, vision_end_token_id=end)


@dataclass(frozen=True)
class Checkpoint:
    """What a repository holds: weights, tokenizer and these JSON files."""

    config: object  # that builds it, for a tokenizer
    tokenizer: object  # that builds it
    pictures: dict  # preprocessor_config.json
    processor: str
    settings: dict | None = None  # processor_config.json, where the family has one
    template: str | None = None  # chat_template.json
    videos: dict | None = None  # video_preprocessor_config.json
    flat: bool = False  # config.json from before language models had their own part in it

    def save(self, folder: Path) -> Path:
        tokenizer = self.tokenizer()
        widen(AutoModelForImageTextToText.from_config(self.config(tokenizer=tokenizer))).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if self.flat:
            flatten(folder / "config.json")
        named = {"processor_class": self.processor}
        described = json.loads((folder / "tokenizer_config.json").read_text())
        write(folder / "tokenizer_config.json", described | named)
        write(folder / "preprocessor_config.json", self.pictures | named)
        if self.settings:
            write(folder / "processor_config.json", self.settings | named)
        if self.videos:
            write(folder / "video_preprocessor_config.json", self.videos | named)
        if self.template:
            write(folder / "chat_template.json", {"chat_template": self.template})
        return folder


def flatten(path):
    """As Qwen2-VL and Qwen2.5-VL were published: the language model's fields on top, rotary ones by their old names."""
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    write(path, text | config | old)


def write(path, content):
    path.write_text(json.dumps(content))


def clip_pictures(kind, **more):
    crop = {"height": 56, "width": 56}
    return {"image_processor_type": kind, "crop_size": crop, "size": {"shortest_edge": 56}, **more}


def qwen_pictures(kind, patch, **size):
    cut = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    return {"image_processor_type": kind, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **cut, **size}


CLIP_SETTINGS = {"patch_size": 14, "vision_feature_select_strategy": "default", "image_token": "<image>"}
LLAVA_SETTINGS = CLIP_SETTINGS | {"num_additional_image_tokens": 1}
PIXELS = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
QWEN2_VISION = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=2, patch_size=14, mlp_ratio=2)
QWEN2_5_VISION = dict(
    depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32, window_size=56, patch_size=14
)
QWEN3_VISION = dict(
    depth=3,
    hidden_size=32,
    intermediate_size=48,
    num_heads=2,
    out_hidden_size=32,
    patch_size=16,
    num_position_embeddings=64,
    deepstack_visual_indexes=[0, 1, 2],
)
HUB = {
    "LlavaForConditionalGeneration": Checkpoint(
        partial(llava_config, llava.LlavaConfig),
        llama_tokenizer,
        clip_pictures("CLIPImageProcessor"),
        "LlavaProcessor",
        settings=LLAVA_SETTINGS,
        template=LLAVA_TEMPLATE,
    ),
    "LlavaNextForConditionalGeneration": Checkpoint(
        partial(llava_config, llava_next.LlavaNextConfig, image_grid_pinpoints=PINPOINTS),
        llama_tokenizer,
        clip_pictures("LlavaNextImageProcessor", image_grid_pinpoints=PINPOINTS),
        "LlavaNextProcessor",
        settings=LLAVA_SETTINGS,
        template=MISTRAL_TEMPLATE,
    ),
    "Qwen2VLForConditionalGeneration": Checkpoint(
        partial(qwen_config, qwen2_vl.Qwen2VLConfig, vision=QWEN2_VISION),
        qwen_tokenizer,
        qwen_pictures("Qwen2VLImageProcessor", 14, **PIXELS),
        "Qwen2VLProcessor",
        template=CHATML,
        flat=True,
    ),
    "Qwen2_5_VLForConditionalGeneration": Checkpoint(
        partial(qwen_config, qwen2_5_vl.Qwen2_5_VLConfig, vision=QWEN2_5_VISION),
        qwen_tokenizer,
        qwen_pictures("Qwen2VLImageProcessor", 14, **PIXELS),
        "Qwen2_5_VLProcessor",
        template=CHATML,
        flat=True,
    ),
    "Qwen3VLForConditionalGeneration": Checkpoint(
        partial(qwen_config, qwen3_vl.Qwen3VLConfig, vision=QWEN3_VISION),
        qwen_tokenizer,
        qwen_pictures("Qwen2VLImageProcessorFast", 16, size={"shortest_edge": 64 * 64, "longest_edge": 128 * 128}),
        "Qwen3VLProcessor",
        template=CHATML,
        videos={"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 16, "size": {"longest_edge": 1 << 16}},
    ),
    "VideoLlavaForConditionalGeneration": Checkpoint(
        partial(llava_config, video_llava.VideoLlavaConfig, video_token_index="<video>", image_seq_length=16),
        llama_tokenizer,
        clip_pictures("VideoLlavaImageProcessor"),
        "VideoLlavaProcessor",
        settings=CLIP_SETTINGS | {"video_token": "<video>"},
    ),
}
