"""What an accelerated model should compute, by the untouched model, slowly, sharing no code with the engine.

Every layer runs at full length under an explicit mask. A dropped token stays in the sequence and is hidden from all
others; a frozen one gets its old state back after each layer, a skipped one after one layer. A token that others were
merged into gets its new state in front of the layer. Every new token starts again from the beginning, without a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from halfv_accel.plan import Plan
from halfv_accel.strategies import Merging

NEW_TOKENS = 4
VISUAL_IDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
BORDER_IDS = ("vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class Loss:
    """Tokens [B, S] hidden from `layer` on ("drop"), or not updated from there on ("freeze") or there ("skip").

    ``states`` [B, S, H] are written to the tokens `written` [B, S] in front of the layer.
    """

    layer: int
    then: str
    tokens: Tensor
    written: Tensor | None = None
    states: Tensor | None = None


def losses(
    plan: Plan,
    visual: Tensor,
    kept: Sequence[Tensor],
    text: Tensor | None = None,
    inputs: Mapping[int, Tensor] = MappingProxyType({}),
) -> list[Loss]:
    """What a plan's stages took away, by what they report as kept, and what layers it skips.

    Parameters
    ----------
    text : (B, S) bool Tensor, optional
        Tokens of text; only where tokens are merged.
    inputs : dict
        By layer, what it got from the engine: [B, n, H], packed to the right.
    """
    found, left = [], visual
    spared = visual.sum(1, keepdim=True) < plan.min_visual_tokens
    for stage, stays in zip(plan.stages, kept, strict=True):
        loss = Loss(stage.layer, stage.then, left & ~stays)
        if isinstance(stage.strategy, Merging) and text is not None and bool(loss.tokens.any()):
            merged = stays & loss.tokens.any(1, keepdim=True)
            loss = replace(loss, written=merged, states=spread(inputs[stage.layer], text | stays))
        found.append(loss)
        left = stays
    for layer in plan.skip:
        alive = visual
        for stage, stays in zip(plan.stages, kept, strict=True):
            alive = stays if stage.layer <= layer else alive
        found.append(Loss(layer, "skip", alive & ~spared))
    return found


def spread(packed: Tensor, places: Tensor) -> Tensor:
    """Rows that are packed to the right, at their places [B, S]: [B, S, H]."""
    full = torch.zeros(*places.shape, packed.shape[-1], dtype=packed.dtype, device=packed.device)
    for row, mask in enumerate(places.to(packed.device)):
        count = int(mask.sum())
        full[row, mask] = packed[row, packed.shape[1] - count :]
    return full


def visual_ids(config: Any, names: Sequence[str] = VISUAL_IDS) -> list[int]:
    """Token ids that stand for pictures and videos."""
    return sorted({token for name in names if (token := getattr(config, name, None)) is not None})


def greedy(
    model: Any, inputs: Mapping[str, Any], new_tokens: int = NEW_TOKENS, **options: Any
) -> tuple[Tensor, Tensor]:
    """Logits [B, new, vocabulary] in float32 and tokens [B, new] of a short greedy generation.

    Neither the end nor a placeholder may be generated: the sequence has to go on, and to stand as a prompt again.
    """
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    out = model.generate(
        **inputs,
        **options,
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        suppress_tokens=ends + visual_ids(model.config, VISUAL_IDS + BORDER_IDS),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits, dim=1).float(), out.sequences[:, -new_tokens:]


def full_length(
    model: Any, layers: Sequence[nn.Module], inputs: Mapping[str, Any], tokens: Tensor, lost: Sequence[Loss]
) -> Tensor:
    """Logits [B, n, vocabulary] at the end of the prompt and after each of `tokens` [B, n] but the last."""
    steps = []
    for length in range(tokens.shape[1]):
        longer = prolonged(inputs, tokens[:, :length])
        with hooked(layers, longer["attention_mask"].bool(), lost):
            steps.append(greedy(model, longer, new_tokens=1, use_cache=False)[0])
    return torch.cat(steps, dim=1)


def prolonged(inputs: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The same prompt with more text at its end."""
    ids = inputs["input_ids"]
    longer = dict(inputs, input_ids=torch.cat([ids, tokens], dim=1))
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    longer["attention_mask"] = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    for name in inputs:
        if name.endswith("token_type_ids"):  # which tokens are visual; these are not
            longer[name] = torch.cat([inputs[name], torch.zeros_like(tokens)], dim=1)
    return longer


def rounded(model: Any, layers: Sequence[nn.Module], inputs: Mapping[str, Any]) -> Tensor:
    """Logits [B, 1, vocabulary] of the untouched model when each layer's output is off by a rounding."""
    draw = torch.Generator().manual_seed(0)

    def jitter(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        shift = (torch.rand(output.shape, generator=draw) - 0.5) * torch.finfo(output.dtype).eps
        return (output.float() * (1 + shift.to(output.device))).to(output.dtype)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(jitter).remove)
        return greedy(model, inputs, new_tokens=1)[0]


@contextmanager
def hooked(layers: Sequence[nn.Module], real: Tensor, lost: Sequence[Loss]) -> Iterator[None]:
    """Explicit masks and restored rows in every layer of an otherwise untouched model.

    Parameters
    ----------
    real : (B, S) bool Tensor
        Tokens that are not padding.
    """
    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hidden, frozen = (_taken(lost, index, then, real) for then in ("drop", "freeze"))
            skipped = _taken([loss for loss in lost if loss.layer == index], index, "skip", real)
            hide, restore = partial(_hide, real & ~hidden), partial(_restore, frozen | skipped)
            for loss in lost:
                if loss.layer == index and loss.written is not None:
                    write = partial(_write, loss)
                    hooks.callback(layer.register_forward_pre_hook(write, with_kwargs=True).remove)
            hooks.callback(layer.register_forward_pre_hook(hide, with_kwargs=True).remove)
            hooks.callback(layer.register_forward_hook(restore, with_kwargs=True).remove)
        yield


def _taken(lost: Sequence[Loss], index: int, then: str, real: Tensor) -> Tensor:
    taken = torch.zeros_like(real)
    for loss in lost:
        if loss.then == then and loss.layer <= index:
            taken[:, : loss.tokens.shape[1]] |= loss.tokens
    return taken


def _hide(visible: Tensor, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Both attention implementations take a float mask: 0, or the dtype's minimum."""
    states = _states(args, kwargs)
    length = visible.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=states.device)  # a row that sees nothing would be NaN
    earlier = torch.ones_like(itself).tril()
    allowed = (earlier & visible.to(states.device)[:, None, :]) | itself
    mask = torch.zeros(allowed.shape, dtype=states.dtype, device=states.device)
    mask = mask.masked_fill(~allowed, torch.finfo(states.dtype).min)[:, None]
    return args, {**kwargs, "attention_mask": mask}


def _write(loss: Loss, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The states of tokens that others were merged into; a longer sequence has more tokens behind them."""
    full = _states(args, kwargs).clone()
    if loss.written is not None and loss.states is not None:
        width = loss.written.shape[1]
        written = loss.written.to(full.device)[..., None]
        full[:, :width] = torch.where(written, loss.states.to(full.device, full.dtype), full[:, :width])
    return ((full, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": full})


def _restore(frozen: Tensor, layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
    return torch.where(frozen.to(output.device)[..., None], _states(args, kwargs), output)


def _states(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
