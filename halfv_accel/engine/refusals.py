"""What HalfV does not support, said in one sentence before anything is computed.

Three moments: when a model is to be accelerated, when `generate` is called, and when a forward brings visual features.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from halfv_accel.adapters import Family, check_whole_prompt
from halfv_accel.downsample import check_model_shrinks
from halfv_accel.engine.cache import broken_off, reduced_layer, why_not
from halfv_accel.engine.masks import Kernel, kernel_of
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Plan

PACKED = (
    "packs several samples into a row (positions that restart, or a mask that counts samples), and HalfV chooses for a "
    "row as a whole: give each sample a row of its own, padded"
)


def check_model(family: Family, plan: Plan) -> None:
    """Refuse a model in a state in which its forward could not be reduced."""
    if plan.keeps_everything:
        return
    check_evaluating(family.model)
    check_attention(family, plan)
    reason = why_not(DynamicCache(config=family.text.config))
    if reason is not None:
        raise HalfVError(f"this model's own cache is not supported: {reason}")


def refuse_shrinking(model: nn.Module) -> None:
    """Refuse to shrink pictures: a model is given tensors."""
    check_model_shrinks(model)
    raise HalfVError(
        "the plan shrinks pictures (downsample), and a model only sees what was made of them: make inputs with "
        "halfv_accel.chat_inputs(..., downsample=plan.downsample), or shrink_pictures, then call "
        "accelerate(model, plan.inside)"
    )


def check_evaluating(model: nn.Module) -> None:
    if model.training:
        raise HalfVError("the model is in training mode, and HalfV reduces only inference: call model.eval() first")


def check_attention(family: Family, plan: Plan) -> Kernel:
    """The kind of mask that the model's attention takes; refuses those in which the plan cannot be expressed."""
    check_whole_prompt(family)
    used = family.text.config._attn_implementation
    kernel = kernel_of(used)
    if kernel is None:
        raise HalfVError(
            f"attention implementation '{used}' is not supported: "
            "call model.set_attn_implementation('sdpa'), or 'eager'"
        )
    if kernel == "flash" and plan.freezes:
        raise HalfVError(
            f"attention implementation '{used}' cannot show frozen visual tokens to the text: "
            "call model.set_attn_implementation('sdpa'), or use a plan with ssr_mode='sparse'"
        )
    return kernel


def refuse_continuous_batching(*_: Any) -> None:
    raise HalfVError(
        "continuous batching keeps its own paged cache, which HalfV cannot reduce: "
        "call model.generate, or leave the accelerate(...) block"
    )


def check_generate(model: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Refuse ways of generating whose forwards look like a prefill and are not, or that need another cache."""
    given = inspect.signature(type(model).generate).bind_partial(model, *args, **kwargs).arguments
    given = {**given, **given.pop("kwargs", {})}
    configs = [config for config in (given.get("generation_config"), model.generation_config) if config is not None]

    def setting(name: str) -> Any:
        values = (given.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in values if value is not None), None)

    embeds = given.get("inputs_embeds")
    if embeds is not None and embeds.shape[1] > 1:
        raise HalfVError(
            "generate(inputs_embeds=...) takes the prompt from embeddings, in which visual tokens cannot be told from "
            "others: leave inputs_embeds out, and pass input_ids with the pictures' pixels"
        )
    if setting("use_cache") is False:
        raise HalfVError(
            "generate(use_cache=False) would choose visual tokens anew for every generated token: leave use_cache on"
        )
    if given.get("custom_generate") is not None:
        raise HalfVError("custom_generate runs a loop of its own, which HalfV cannot check: leave it out")
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"):
        if setting(name):
            raise HalfVError(
                f"{name} guesses tokens ahead, and HalfV would take a guess for the end of the prompt: leave it out"
            )
    if setting("prefill_chunk_size") is not None:
        raise HalfVError(
            f"prefill_chunk_size={setting('prefill_chunk_size')} cuts the prompt, and HalfV needs all of it to choose "
            "visual tokens: leave it out"
        )
    if setting("cache_implementation") not in (None, "dynamic"):
        raise HalfVError(
            f"cache_implementation='{setting('cache_implementation')}' cannot hold fewer tokens in some layers: "
            "leave it out"
        )


def check_forward(family: Family, core: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Refuse a forward, of a prefill or of new tokens, that does not belong to this model."""
    if core is not family.core:
        raise HalfVError(
            "a replica of the accelerated model was called, as DataParallel makes them: "
            "call the model itself, one process per GPU"
        )
    if arguments.get("cache") is not None:
        refuse_continuous_batching()
    embeds = arguments.get("inputs_embeds")
    if arguments.get("input_ids") is None and embeds is not None and embeds.shape[1] > 1:
        raise HalfVError(
            "several tokens came as inputs_embeds without input_ids, which say where visual tokens are: "
            "pass input_ids and pixel_values"
        )


def check_cache(cache: Any, first: int) -> None:
    """Refuse to go on with a cache that another plan has reduced, or a failed forward left in disorder."""
    if broken_off(cache):
        raise HalfVError("a forward into this cache broke off in the middle: start again with an empty cache")
    if any(reduced_layer(cache, layer) is not None for layer in range(first)):
        raise HalfVError(
            f"the cache was reduced by a plan that starts before layer {first}: "
            "go on with that plan, or start again with an empty cache"
        )


def check_prefill(family: Family, plan: Plan, arguments: Mapping[str, Any]) -> Kernel:
    """Refuse a visual prefill that could not be reduced exactly, and tell the kind of mask that it takes."""
    check_evaluating(family.core)
    check_recording()
    kernel = check_attention(family, plan)
    cache = arguments.get("past_key_values")
    reason = why_not(cache)  # before the mask: generate makes another kind of mask for another kind of cache
    if reason is not None:
        raise HalfVError(reason)
    if arguments.get("input_ids") is None:
        raise HalfVError("the pictures came without input_ids, which say where the visual tokens are: pass them")
    if _asks(family, arguments, "output_attentions"):
        raise HalfVError(
            "output_attentions would return maps of different sizes for different layers: "
            "leave it out, or call the model outside accelerate(...)"
        )
    check_packing(arguments)
    mask = arguments.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise HalfVError(
            "attention_mask is not of shape [batch, sequence], and HalfV cannot tell padding from it: pass a 2-D mask"
        )
    length = arguments["input_ids"].shape[1] + (0 if cache is None else cache.get_seq_length())
    if mask is not None and mask.shape[1] != length:
        raise HalfVError(
            f"attention_mask covers {mask.shape[1]} tokens, but cache and prompt hold {length}: pass one entry for each"
        )
    return kernel


def check_recording() -> None:
    """Refuse to be recorded: a recording would repeat one prompt's choice of tokens for every other prompt."""
    capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or capturing:
        raise HalfVError(
            "torch.jit.trace, torch.export and CUDA graphs record one prompt's choice of visual tokens for all others: "
            "call the model as it is, or record it outside accelerate(...)"
        )


def check_packing(arguments: Mapping[str, Any]) -> None:
    """Refuse the arguments that flash attention takes of packed rows; they say nothing of a reduced row."""
    given = [name for name in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx") if arguments.get(name) is not None]
    if given:
        raise HalfVError(f"{given[0]} {PACKED}")


def check_rows(packed: Sequence[bool]) -> None:
    """Refuse several samples in a row: it has one budget, and one last token that visual tokens are scored with."""
    if any(packed):
        raise HalfVError(f"row {[bool(several) for several in packed].index(True)} of the batch {PACKED}")


def check_prompt(ends_in_visual: Sequence[bool]) -> None:
    """Refuse a prompt that ends in a visual token: the last text token is what visual tokens are scored with."""
    if any(ends_in_visual):
        row = [bool(ends) for ends in ends_in_visual].index(True)
        raise HalfVError(
            f"prompt {row} of the batch ends in a visual token, but its last token must be text: "
            "put the question after the picture, e.g. with processor.apply_chat_template(..., "
            "add_generation_prompt=True)"
        )


def _asks(family: Family, arguments: Mapping[str, Any], name: str) -> bool:
    asked = arguments.get(name)
    return bool(getattr(family.text.config, name, False) if asked is None else asked)
