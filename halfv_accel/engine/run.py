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
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from halfv_accel.adapters import Family, check_projections, family_of
from halfv_accel.adapters.vision import VisionRecorder
from halfv_accel.engine import refusals
from halfv_accel.engine.bypass import check_alone, check_layers, inside, refuse_bypass
from halfv_accel.engine.cache import reduced_layer, set_open
from halfv_accel.engine.masks import decode_mask
from halfv_accel.engine.prefill import Prefill
from halfv_accel.engine.report import PrefillReport
from halfv_accel.engine.scene import Scene, asks_of_pictures, vision_needs
from halfv_accel.errors import HalfVError
from halfv_accel.names import PAPER, named_plan
from halfv_accel.plan import Plan
from halfv_accel.plan_document import PlanDocument, is_plan
from halfv_accel.profile import Profile


def accelerate(model: nn.Module, plan: Plan | Profile | str | os.PathLike[str]) -> Run:
    """Make a vision-language model process fewer visual tokens.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        An unmodified transformers model of a supported architecture, in evaluation mode, or PEFT's around one.
    plan : Plan, Profile, path or str
        A profile is checked against the model first. A str that ends in .json, has a folder in it or names a file is
        the path of one, or of a plan; any other is a plan in words, such as "fastv:2:0.25", "visionzip::64",
        "ivr:2:0.25,sparse:21:0.05", or "paper": the model's row of Table 9.

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
    model = family.model
    if isinstance(plan, str) and not _is_path(plan):
        plan = named_plan(plan, model)
    elif isinstance(plan, (str, os.PathLike)):
        plan = PlanDocument.load(plan).plan() if is_plan(plan) else Profile.load(plan)
    if isinstance(plan, Profile):
        plan.check(model)
        plan = plan.plan()
    if not isinstance(plan, Plan):
        raise HalfVError(
            f"{type(plan).__name__} is not a plan: "
            "give a Plan, a Profile, the path of a profile.json, or a plan in words"
        )
    if plan.shrinks:
        refusals.refuse_shrinking(family.model)
    plan.check_depth(len(family.layers))
    refusals.check_model(family, plan)
    check_projections(family, plan.first)
    return Run(family, plan)


def _is_path(text: str) -> bool:
    """Does a str name a profile, and not a plan? The word "paper" never does."""
    if text == PAPER:
        return False
    return text.endswith(".json") or "/" in text or os.sep in text or os.path.exists(text)


class Run:
    """A plan on a model; what it did last is in `last`."""

    def __init__(self, family: Family, plan: Plan) -> None:
        self.family, self.plan = family, plan
        self.last: PrefillReport | None = None
        self.dormant = False  # another run was installed on top of this one
        # Refuses a family of which nothing is known that the plan asks for.
        self.recorder = VisionRecorder(family, vision_needs(plan)) if asks_of_pictures(plan) else None
        if self.recorder is not None:
            family.check_structure()
        self._installed: ExitStack | None = None
        self.closing = False  # it is being removed, and waits for forwards that other threads are in
        self._thread = threading.local()  # holds the forward under way; a model may serve several threads
        self._busy: dict[int, object] = {}  # by thread, a token for the forward that it is in
        self._lock = threading.Lock()

    def __enter__(self) -> Run:
        return self.install()

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __reduce__(self) -> Any:
        raise HalfVError("an accelerated model cannot be copied or saved: leave the accelerate(...) block first")

    def install(self) -> Run:
        """Put the hooks on; a half-finished installation unwinds."""
        if self._installed is not None:
            raise HalfVError("this run is installed already, or being removed: call accelerate(...) for another one")
        core = self.family.core
        with ExitStack() as stack:
            stack.callback(wake_newest, core)
            guard(self.family.model, stack)
            if self.recorder is not None:
                self.recorder.install(stack)
            whole = self.family.model
            stack.callback(whole.register_forward_pre_hook(self._called).remove)
            stack.callback(whole.register_forward_hook(self._answered, with_kwargs=True).remove)
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

    def remove(self, timeout_s: float = 600) -> None:
        """Take the hooks off; calling it again does nothing.

        Forwards that other threads are in are waited for; those that begin meanwhile are no longer this run's.

        Parameters
        ----------
        timeout_s : float
            Longest wait. 0 waits for nobody: for a thread that Ctrl-C or SystemExit took out of its forward, of which
            torch tells nobody.

        Raises
        ------
        HalfVError
            Inside a forward of this thread, or if a forward takes longer than `timeout_s` seconds.
        """
        core = self.family.core
        with self._lock:
            if self._installed is None or self.closing:
                return
            if inside(core):
                raise HalfVError("remove() was called in the middle of a forward: call it when the forward is through")
            self.closing = True
        try:
            wake_newest(core)
            self._busy.pop(threading.get_ident(), None)
            begun, deadline = list(self._busy.items()), time.monotonic() + timeout_s
            while timeout_s > 0 and any(self._busy.get(thread) is token for thread, token in begun):
                if time.monotonic() > deadline:
                    raise HalfVError(
                        f"a forward has been under way for {timeout_s:g} s: call remove() again later, or "
                        "remove(timeout_s=0) if it was interrupted"
                    )
                time.sleep(1e-3)
            self._installed.close()
            self._installed = None
        finally:
            self.closing = False
            wake_newest(core)
        self._leave_forward()
        self._thread, self._busy = threading.local(), {}

    @property
    def first(self) -> int:
        """The first layer with hooks."""
        return min(self.plan.first, len(self.family.layers))

    @property
    def forward(self) -> Forward | None:
        """The accelerated forward that this thread is in."""
        return getattr(self._thread, "forward", None)

    @property
    def prefills(self) -> int:
        """Forwards with visual features that have begun in this thread."""
        return getattr(self._thread, "prefills", 0)

    def check_reached(self, before: int, arguments: Mapping[str, Any]) -> None:
        """Refuse the result of a call with pictures in which no prefill has begun; `before` is what had."""
        if not self.dormant and self.prefills == before and self.family.modalities(arguments):
            refuse_bypass("the model")

    def _called(self, model: nn.Module, args: tuple) -> None:
        """Before a forward of the whole model."""
        self._thread.before = None if self.dormant else self.prefills

    def _answered(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """After a forward of the whole model: did it pass the core's hooks?"""
        before, self._thread.before = getattr(self._thread, "before", None), None
        if before == self.prefills:
            self.check_reached(before, self.family.arguments(args, kwargs))

    def _begin(self, core: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a forward: is it a prefill with visual features, and can it be reduced?"""
        self._leave_forward()  # Ctrl-C leaves a forward without its end
        self._busy[threading.get_ident()] = object()  # before it is asked whether the run is being removed
        if self.dormant:
            self._busy.pop(threading.get_ident(), None)
            return
        arguments = self.family.core_arguments(args, kwargs)
        sized = arguments if self.recorder is None else self.recorder.begin(arguments)
        cache, prefill = arguments.get("past_key_values"), None
        if not self.plan.keeps_everything:
            refusals.check_forward(self.family, core, arguments)
        refusals.check_cache(cache, self.first)
        if self.family.modalities(arguments):
            self._thread.prefills = self.prefills + 1
            prefill = self._untouched(arguments) if self.plan.keeps_everything else self._prefill(arguments, sized)
        else:
            self._note_text_only(arguments)
        set_open(cache, True)
        self._thread.forward = Forward(prefill, cache)

    def _prefill(self, arguments: dict[str, Any], sized: dict[str, Any]) -> Prefill:
        """A prefill; `sized` are the arguments with the sizes of pictures that were encoded before."""
        kernel = refusals.check_prefill(self.family, self.plan, arguments)
        plan = self.plan
        scene = None
        if self.recorder is not None:
            scene = Scene(self.family.structure(arguments["input_ids"], sized), self.recorder)
        prefill = Prefill.of(
            self.family, plan.fidelity, kernel, arguments, plan.stages, plan.min_visual_tokens, plan.skip, scene
        )
        refusals.check_rows(prefill.packed)
        refusals.check_prompt(prefill.ends_in_visual)
        return prefill

    def _untouched(self, arguments: dict[str, Any]) -> Prefill | None:
        """A prefill that only counts, whatever mask and cache it has; None where it cannot even do that."""
        ids = arguments.get("input_ids")
        if ids is None:
            self.last = None
            return None
        plain = {**arguments, "attention_mask": None, "position_ids": None}
        return Prefill.of(self.family, self.plan.fidelity, "sdpa", plain, self.plan.stages)

    def _end(self, core: nn.Module, args: tuple, output: Any) -> None:
        """After a forward, also a failed one."""
        forward = self._leave_forward()
        if forward is None or forward.prefill is None or output is None:
            return
        depth = min(len(self.family.layers), self.family.text.config.num_hidden_layers)
        check_layers(forward.entered, self.first, depth)
        self.last = forward.prefill.report

    def _leave_forward(self) -> Forward | None:
        """Close the caches of this thread's forward, and forget it."""
        forward, self._thread.forward = self.forward, None
        self._busy.pop(threading.get_ident(), None)
        if forward is not None and self.recorder is not None:
            self.recorder.end()
        if forward is not None:
            set_open(forward.cache, False)
            set_open(None if forward.prefill is None else forward.prefill.cache, False)
        return forward

    def _note_text_only(self, arguments: dict[str, Any]) -> None:
        cache, ids = arguments.get("past_key_values"), arguments.get("input_ids")
        if ids is not None and (cache is None or cache.get_seq_length() == 0):
            self.last = PrefillReport([0] * ids.shape[0], len(self.family.layers))


@dataclass(frozen=True)
class Forward:
    """A forward of the core in one thread, under the run that was awake when it began.

    ``masks`` are those that layers with shortened caches were given, by what determines them: one for each way in which
    a prefill has shortened layers, whatever the number of layers. ``entered`` are the layers whose hooks have run.
    """

    prefill: Prefill | None
    cache: Any
    masks: dict[Any, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    entered: list[int] = field(default_factory=list)


class LayerHooks:
    """The two hooks of one decoder layer."""

    halfv_hook = True  # see adapters.signature: a layer with these is the layer that it was

    def __init__(self, run: Run, index: int) -> None:
        self.run, self.index = run, index

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        forward = self.run.forward
        if forward is None:
            if self.index == self.run.first and not self.run.dormant:
                check_alone(self.run.family.core, self.run.family.text)
            return None
        forward.entered.append(self.index)
        reduced = None if forward.prefill is None else forward.prefill.enter(self.index, args, kwargs)
        return self._all(forward, args, kwargs) if reduced is None else reduced

    def leave(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        forward = self.run.forward
        return None if forward is None or forward.prefill is None else forward.prefill.leave(output)

    def _all(self, forward: Forward, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """The layer processes all tokens; on a shortened cache only the mask is of the wrong width."""
        cached = reduced_layer(kwargs.get("past_key_values"), self.index)
        if cached is None:
            return None
        hidden, base = args[0] if args else kwargs["hidden_states"], kwargs.get("attention_mask")
        same = (cached.history, cached.prefix, cached.tail, hidden.device, None if base is None else id(base))
        if same not in forward.masks:
            kernel = refusals.check_attention(self.run.family, self.run.plan)
            tail = cached.tail + hidden.shape[1]
            mask = decode_mask(base, cached.prefix, cached.prefix_valid, tail, hidden, kernel)
            forward.masks[same] = base, mask  # base too, so that nothing else gets its id
        return args, {**kwargs, "attention_mask": forward.masks[same][1], "position_ids": None}


def wake_newest(core: nn.Module) -> None:
    """Of all runs on a model, let the one that was installed last work."""
    runs = runs_on(core)
    awake = [run for run in runs if not run.closing][-1:]
    for run in runs:
        run.dormant = run not in awake


def runs_on(core: nn.Module) -> list[Run]:
    """Installed runs, oldest first."""
    owners = [getattr(hook, "__self__", None) for hook in list(core._forward_pre_hooks.values())]
    return [owner for owner in owners if isinstance(owner, Run)]


GUARDED = {
    "generate": refusals.check_generate,
    "init_continuous_batching": refusals.refuse_continuous_batching,
}


class Guard:
    """A method of the model that refuses what HalfV cannot do, and otherwise is the model's own."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.check, self.original = model, GUARDED[name], getattr(model, name)
        self.own = vars(model).get(name)  # what a user had put on the instance
        functools.update_wrapper(self, self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = next((run for run in runs_on(self.model.model) if not run.dormant), None)
        if run is None:  # somebody may have kept it beyond its block
            return self.original(*args, **kwargs)
        if not run.plan.keeps_everything:
            self.check(self.model, args, kwargs)
        before = run.prefills
        with nullcontext() if run.recorder is None else run.recorder.call(kwargs):
            result = self.original(*args, **kwargs)
        run.check_reached(before, kwargs)
        return result


def guard(model: Any, stack: ExitStack) -> None:
    """Guard the model's methods until the stack closes and no other run is left."""
    if not runs_on(model.model):
        for name in GUARDED:
            setattr(model, name, Guard(model, name))
    stack.callback(unguard, model)


def unguard(model: Any) -> None:
    """Put the methods back, unless another run is left or somebody has put something else there meanwhile."""
    for name in () if runs_on(model.model) else GUARDED:
        current = vars(model).get(name)
        if isinstance(current, Guard):
            delattr(model, name)
            if current.own is not None:
                setattr(model, name, current.own)
