"""Signals of the vision tower, from where it runs to where a strategy reads them.

`generate` encodes pictures before the core's forward, and hands on features without sizes; a forward encodes them
inside. Either way what the tower said belongs to one call of one thread, and goes with it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from halfv_accel.adapters.base import Family
from halfv_accel.adapters.structure import Structure
from halfv_accel.adapters.towers import VisionTower, Wanted
from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Signal


@dataclass(frozen=True)
class VisionSignals:
    """What towers said of all pictures and videos of a forward, in the order of `Structure.source`."""

    entries: Mapping[Wanted, Tensor]  # [sources, ...], by the layer that was asked for

    def at(self, signal: Signal, layer: int, structure: Structure) -> Tensor:
        """A signal for each token of a structure, on its device; 0 where there is no patch behind a token.

        Returns
        -------
        Tensor
            As `View.vision`: "attention" [B, heads, V] float32, "keys" [B, heads, V, d], "features" [B, V, width].
        """
        source = structure.source
        entries = self.entries[signal, 0 if signal == "features" else layer].to(source.device)
        found = entries[source.clamp(min=0)]
        shown = (source >= 0).view(*source.shape, *[1] * (found.ndim - 2))
        found = found.masked_fill(~shown, 0)
        return found if signal == "features" else found.transpose(1, 2)


class VisionRecorder:
    """Listens to a model's towers for what the strategies of a plan need.

    Parameters
    ----------
    needs : collection of (signal, layer)
        Signals, and the layers that they are asked of, from `Needs.vision`. Without any, no tower gets a hook, and
        only the sizes of pictures are remembered.

    Raises
    ------
    HalfVError
        If the family cannot give them.

    Notes
    -----
    ``call`` is around a whole `generate`, ``begin`` and ``end`` around the core's forward, ``signals`` in between,
    when the towers are through. A tower that runs outside of these is not listened to.
    """

    def __init__(self, family: Family, needs: Collection[Wanted] = ()) -> None:
        self.family = family
        self.needs: set[Wanted] = {(signal, 0 if signal == "features" else layer) for signal, layer in needs}
        if needs and not family.towers:
            raise HalfVError(family.unknown("signals of the vision tower"))
        named = {name: modality for modality, name in family.towers.items()} if needs else {}
        self._thread = Listening()
        towers = [family.vision_tower(modality) for modality in named.values()]
        self._ears = [
            Ears(self._thread, tower, {(signal, layer): (signal, tower.layer(layer)) for signal, layer in self.needs})
            for tower in towers
        ]

    def __reduce__(self) -> Any:
        raise HalfVError("an accelerated model cannot be copied or saved: leave the accelerate(...) block first")

    def install(self, stack: ExitStack) -> None:
        """Put the hooks on, until the stack closes."""
        for ears in self._ears:
            ears.install(stack)

    @contextmanager
    def call(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Around a `generate` with these arguments: what its towers say is kept for the forward that follows."""
        self._thread.start(arguments)
        try:
            yield
        finally:
            self._thread.stop()

    def begin(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Before the core's forward. Its arguments, with sizes of pictures that `generate` has encoded already.

        They are for `Family.structure`, and for nothing that asks whether pixels have come.
        """
        pixels = [name for group in self.family.pixels.values() for name in group]
        if any(arguments.get(name) is not None for name in pixels):
            self._thread.start(arguments)
            return arguments
        if not arguments.get("mm_encoder_outputs"):
            self._thread.stop()
            return arguments
        earlier, names = self._thread.arguments, self.family.encoder_arguments
        return {**arguments, **{name: earlier[name] for name in names if earlier.get(name) is not None}}

    def signals(self, structure: Structure) -> VisionSignals:
        """What the towers have said of this forward's pictures.

        Raises
        ------
        HalfVError
            If they were encoded where nobody listened.
        """
        calls, entries = self._thread.calls, {}
        for call in calls:
            call.make()
        for wanted in self.needs:
            parts = [call.made.get(call.ears.asked[wanted]) for call in calls]
            heard = [part for part in parts if part is not None]
            if heard:
                entries[wanted] = torch.cat([part.to(heard[0].device) for part in heard])
        if {wanted for wanted, entry in entries.items() if len(entry) == structure.sources} != self.needs:
            raise HalfVError(
                "this plan needs signals of the vision tower, which ran where HalfV could not listen: give the model "
                "pixels and not encoded pictures, and call torch.compiler.reset() if its tower was compiled before"
            )
        return VisionSignals(entries)

    def end(self) -> None:
        """After the core's forward, also a failed one: forget."""
        self._thread.stop()


class Listening(threading.local):
    """What one thread has heard in the model call that it is in."""

    def __init__(self) -> None:
        self.stop()

    def start(self, arguments: Mapping[str, Any]) -> None:
        self.on, self.arguments = True, arguments
        self.calls: list[Call] = []

    def stop(self) -> None:
        self.start({})
        self.on = False


class Call:
    """One call of a tower."""

    def __init__(self, ears: Ears, arguments: dict[str, Any]) -> None:
        self.ears = ears
        self.taken: dict[str, Any] = {"called": arguments}
        self.made: dict[Wanted, Tensor] = {}

    def make(self) -> None:
        """Make what all parts are there for. A projector comes behind its tower, so this happens twice."""
        tower = self.ears.tower
        for real in set(self.ears.asked.values()) - set(self.made):
            if all(part in self.taken for part in tower.parts(real)):
                self.made[real] = tower.signal(real, self.taken)

    def forget(self) -> None:
        """Let go of all queries and keys, from which everything has been made."""
        self.taken = {name: self.taken[name] for name in ("called", "states")}


class Ears:
    """The hooks of one tower: what they hear in a thread goes to the tower's call that the thread was in last."""

    def __init__(self, thread: Listening, tower: VisionTower, asked: Mapping[Wanted, Wanted]) -> None:
        self.thread, self.tower, self.asked = thread, tower, asked

    def install(self, stack: ExitStack) -> None:
        module = self.tower.module
        stack.callback(module.register_forward_pre_hook(self.begin, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(self.finish).remove)
        parts = {name: part for real in self.asked.values() for name, part in self.tower.parts(real).items()}
        for name, (part, what) in parts.items():
            if what == "output":
                handle = part.register_forward_hook(partial(self.hear_output, name))
            else:
                hear = self.hear_input if what == "input" else self.hear_arguments
                handle = part.register_forward_pre_hook(partial(hear, name), with_kwargs=True)
            stack.callback(handle.remove)

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.thread.on:
            grid = {"grid_thw": args[1]} if len(args) > 1 else {}
            self.thread.calls.append(Call(self, {**kwargs, **grid}))

    def finish(self, module: nn.Module, args: tuple, output: Any) -> None:
        call = self._call()
        if call is not None:
            call.taken["states"] = output[0].shape  # last_hidden_state, whether the output is a tuple or not
            call.make()
            call.forget()

    def hear_output(self, name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._take(name, output.detach())

    def hear_input(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._take(name, (*args, *kwargs.values())[0].detach())

    def hear_arguments(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._take(name, kwargs)

    def _take(self, name: str, part: Any) -> None:
        call = self._call()
        if call is not None:
            call.taken[name] = part

    def _call(self) -> Call | None:
        calls = self.thread.calls
        return calls[-1] if calls and calls[-1].ears is self else None
