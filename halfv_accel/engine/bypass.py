"""Forwards that went past the hooks are noticed, and never returned as if a plan had been at work.

What was compiled or recorded before the hooks were installed can run without them, and so can what a tool has put in
place of a layer or of the core. That cannot be seen beforehand: the same compiled function works where it compiles
anew. So it is seen when it happens: a call brings pictures and the core's hook hears of none; a prefill ends, and some
layer's hook has not run; layers run, and no core around them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from torch import nn

from halfv_accel.errors import HalfVError


def refuse_bypass(what: str) -> None:
    raise HalfVError(
        f"{what} ran without HalfV's hooks, and nothing was reduced: if it was compiled before accelerate(...), "
        "call torch.compiler.reset() inside the block and try again; if a tool has replaced it, call accelerate(...) "
        "after that tool"
    )


def check_layers(entered: Sequence[int], first: int, depth: int) -> None:
    """Refuse the result of a prefill in which a layer from `first` on was not entered, or not in its turn."""
    expected = range(first, depth)
    if list(entered) != list(expected):
        missing = sorted(set(expected) - set(entered))
        refuse_bypass(f"decoder layer {missing[0]}" if missing else "a decoder layer out of its turn")


def check_alone(core: nn.Module, text: nn.Module) -> None:
    """Refuse a language model that runs on embeddings without the core around it."""
    if _embeds(text) and not inside(core):
        raise HalfVError(
            "the language model was called on inputs_embeds without the whole model around it, and visual tokens "
            "cannot be told from others in them: call the model itself, or leave the accelerate(...) block"
        )


def inside(module: nn.Module) -> bool:
    """Is this thread in the middle of a module's call? Its own stack tells, also behind a Ctrl-C."""
    return any(_is(frame, "_call_impl", module) for frame in _stack())


def _embeds(text: nn.Module) -> bool:
    """Was the language model given embeddings, by whoever is calling its layers now?"""
    found = [frame.f_locals for frame in _stack() if _is(frame, "forward", text)]
    return any(local.get("input_ids") is None and local.get("inputs_embeds") is not None for local in found)


def _is(frame: FrameType, function: str, module: nn.Module) -> bool:
    return frame.f_code.co_name == function and frame.f_locals.get("self") is module


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
