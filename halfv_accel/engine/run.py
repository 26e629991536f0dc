"""Installs a plan on a model as hooks, and takes it off again without a trace.

Nothing of the model is replaced. The core gets two hooks, which recognise a prefill by its visual features; decoder
layers from the first stage on get two, which reduce and restore the residual stream, and which give decoding the mask
that a shortened cache needs. What changes beside hooks while HalfV is installed is `model.generate` and its sibling for
continuous batching, because some ways of generating must be refused and cannot be seen from a forward; they are put
back with everything else.

Runs nest, in any order of removal: the one that was installed last works, the others wait.
"""

from __future__ import annotations

import functools
import os
import threading
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from halfv_accel.adapters import Family, check_projections, family_of
from halfv_accel.engine import refusals
from halfv_accel.engine.cache import reduced_layer
from halfv_accel.engine.masks import decode_mask
from halfv_accel.engine.prefill import Prefill, last_position
from halfv_accel.engine.report import PrefillReport
from halfv_accel.errors import HalfVError
from halfv_accel.plan import Plan
from halfv_accel.profile import Profile


def accelerate(model: nn.Module, plan: Plan | Profile | str | os.PathLike[str]) -> Run:
    """Make a vision-language model process fewer visual tokens.

    Parameters
    ----------
    model : PreTrainedModel
        An unmodified transformers model of a supported architecture, in evaluation mode.
    plan : Plan, Profile or path
        A profile is checked against the model first.

    Returns
    -------
    Run
        Use it in a `with` statement, or call `install()` and later `remove()`.

    Raises
    ------
    HalfVError
        If the model or the plan is not supported, before anything is installed.

    Examples
    --------
    >>> with accelerate(model, "profile.json") as run:  # doctest: +SKIP
    ...     output = model.generate(**inputs)
    >>> run.last.visual_tokens, run.last.stages[0].after  # doctest: +SKIP
    ([1024], [256])
    """
    family = family_of(model)
    if isinstance(plan, (str, os.PathLike)):
        plan = Profile.load(plan)
    if isinstance(plan, Profile):
        plan.check(model)
        plan = plan.plan()
    if not isinstance(plan, Plan):
        raise HalfVError(f"{type(plan).__name__} is not a plan: give a Plan, a Profile or the path of a profile.json")
    plan.check_depth(len(family.layers))
    refusals.check_model(family, plan)
    check_projections(family)
    return Run(family, plan)


class Run:
    """A plan on a model; what it did last is in `last`."""

    def __init__(self, family: Family, plan: Plan) -> None:
        self.family, self.plan = family, plan
        self.last: PrefillReport | None = None
        self.dormant = False  # another run was installed on top of this one
        self._installed: ExitStack | None = None
        self._thread = threading.local()  # the prefill under way; a model may serve several threads

    def __enter__(self) -> Run:
        return self.install()

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __reduce__(self) -> Any:
        raise HalfVError("an accelerated model cannot be copied or saved: leave the accelerate(...) block first")

    def install(self) -> Run:
        """Put the hooks on; a half-finished installation unwinds."""
        if self._installed is not None:
            raise HalfVError("this run is installed already: call accelerate(...) again for another one")
        core = self.family.core
        with ExitStack() as stack:
            stack.callback(wake_newest, core)
            guard(self.family.model, stack)
            stack.callback(core.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            stack.callback(core.register_forward_hook(self._end, always_call=True).remove)
            for index in range(self.first, len(self.family.layers)):
                layer, hooks = self.family.layers[index], LayerHooks(self, index)
                stack.callback(layer.register_forward_pre_hook(hooks.enter, with_kwargs=True).remove)
                # First of all forward hooks, so that those of others see the full-length result.
                stack.callback(layer.register_forward_hook(hooks.leave, prepend=True).remove)
            wake_newest(core)
            self._installed = stack.pop_all()
        return self

    def remove(self) -> None:
        """Take the hooks off; calling it again does nothing."""
        installed, self._installed = self._installed, None
        if installed is not None:
            installed.close()

    @property
    def first(self) -> int:
        """The first layer with hooks: the one before the first stage."""
        return self.plan.stages[0].layer - 1

    @property
    def prefill(self) -> Prefill | None:
        """The accelerated prefill that this thread is in."""
        return getattr(self._thread, "prefill", None)

    def _begin(self, core: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a forward: is it a prefill with visual features, and can it be reduced?"""
        self._thread.prefill = None
        if self.dormant:
            return
        arguments = self.family.core_arguments(args, kwargs)
        refusals.check_forward(self.family, core, arguments, self.first)
        if self.family.modalities(arguments):
            self._thread.prefill = self._prefill(arguments)
        else:
            refusals.check_blind_embeddings(arguments)
            self._note_text_only(arguments)

    def _prefill(self, arguments: dict[str, Any]) -> Prefill:
        kernel = refusals.check_prefill(self.family, self.plan, arguments)
        ids: Tensor = arguments["input_ids"]
        mask = arguments.get("attention_mask")
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
        past_real, real = mask[:, : mask.shape[1] - ids.shape[1]], mask[:, mask.shape[1] - ids.shape[1] :]
        visual = self.family.visual_positions(ids, self.family.modalities(arguments))
        refusals.check_prompt(visual, last_position(real))
        return Prefill(self.family, self.plan, kernel, visual, real, None if past_real.all() else past_real)

    def _end(self, core: nn.Module, args: tuple, output: Any) -> None:
        """After a forward, also a failed one."""
        prefill, self._thread.prefill = self.prefill, None
        if prefill is not None and len(prefill.report.stages) == len(self.plan.stages):
            self.last = prefill.report

    def _note_text_only(self, arguments: dict[str, Any]) -> None:
        cache, ids = arguments.get("past_key_values"), arguments.get("input_ids")
        if ids is not None and (cache is None or cache.get_seq_length() == 0):
            self.last = PrefillReport(visual_tokens=[0] * ids.shape[0])


class LayerHooks:
    """The two hooks of one decoder layer."""

    def __init__(self, run: Run, index: int) -> None:
        self.run, self.index = run, index

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.run.dormant:
            return None
        prefill = self.run.prefill
        reduced = None if prefill is None else prefill.enter(self.index, args, kwargs)
        return self._all(args, kwargs) if reduced is None else reduced

    def leave(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        prefill = self.run.prefill
        return None if prefill is None else prefill.leave(output)

    def _all(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """The layer processes all tokens; on a shortened cache only the mask is of the wrong width."""
        cached = reduced_layer(kwargs.get("past_key_values"), self.index)
        if cached is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        kernel = refusals.check_attention(self.run.family, self.run.plan)
        tail = cached.tail + hidden.shape[1]
        mask = decode_mask(kwargs.get("attention_mask"), cached.prefix, cached.prefix_valid, tail, hidden, kernel)
        cached.expect_decode()
        return args, {**kwargs, "attention_mask": mask, "position_ids": None}


def wake_newest(core: nn.Module) -> None:
    """Of all runs on a model, let the one that was installed last work."""
    runs = runs_on(core)
    for run in runs:
        run.dormant = run is not runs[-1]


def runs_on(core: nn.Module) -> list[Run]:
    """Installed runs, oldest first."""
    owners = (getattr(hook, "__self__", None) for hook in core._forward_pre_hooks.values())
    return [owner for owner in owners if isinstance(owner, Run)]


GUARDED = {
    "generate": refusals.check_generate,
    "init_continuous_batching": refusals.refuse_continuous_batching,
}


class Guard:
    """A method of the model that refuses what HalfV cannot do, and otherwise is the model's own."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.check, self.original = model, GUARDED[name], getattr(model, name)
        functools.update_wrapper(self, self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check(self.model, args, kwargs)
        return self.original(*args, **kwargs)


def guard(model: Any, stack: ExitStack) -> None:
    """Guard the model's methods until the stack closes and no other run is left."""
    if not runs_on(model.model):
        for name in GUARDED:
            own = vars(model).get(name)
            setattr(model, name, Guard(model, name))
            vars(model)[name].own = own
    stack.callback(unguard, model)


def unguard(model: Any) -> None:
    if runs_on(model.model):
        return
    for name in GUARDED:
        own = vars(model)[name].own
        if own is None:
            delattr(model, name)
        else:
            setattr(model, name, own)
