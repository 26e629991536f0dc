"""Hidden states at every layer boundary, handed on as they come.

Boundary l is the input of decoder layer l; boundary L is the output of the last layer, before the final norm. Nothing
is kept: the callback reduces what it sees, so the extra memory is one layer's states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


@contextmanager
def watch_boundaries(layers: nn.ModuleList, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``see(boundary, states)`` with states [batch, sequence, width] at boundaries 0..L of every forward pass."""

    def before(index: int) -> Callable[[nn.Module, tuple, dict], None]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            see(index, args[0] if args else kwargs["hidden_states"])

        return hook

    def after_last(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        see(len(layers), output if isinstance(output, Tensor) else output[0])

    with ExitStack() as installed:
        for index, layer in enumerate(layers):
            installed.callback(layer.register_forward_pre_hook(before(index), with_kwargs=True).remove)
        installed.callback(layers[-1].register_forward_hook(after_last).remove)
        yield
