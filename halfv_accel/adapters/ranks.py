"""Tensor parallelism: the processes among which a model's heads are divided, and what they must have in common.

`from_pretrained(..., tp_plan="auto")` gives every process (rank) some heads of each attention: its projections return
those only, keys and values are cached for those only, and after the output projection a sum over the ranks makes the
residual stream whole again. So states, masks and positions are the same on all ranks, and whatever has an entry for
each head is not. Two rules keep ranks together:

- what has a head dimension and is averaged, compared or shown passes through `Family.all_heads` first. It copies and
  never adds, so every rank goes on with the numbers of a single process, in the order of a single process;
- a choice of tokens is the first rank's. Its inputs should be equal on all ranks to the last bit, but sums over ranks
  promise that nowhere, and ranks that keep different tokens would give a wrong result without an error.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """The processes of one tensor-parallel group; all of them make the calls below, in the same order."""

    group: Any
    device: torch.device  # where this process's part is

    @property
    def size(self) -> int:
        return torch.distributed.get_world_size(self.group)

    def joined(self, part: Tensor, dim: int = 1) -> Tensor:
        """All ranks' parts, of one shape, one after the other."""
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        torch.distributed.all_gather(parts, part.detach().contiguous(), group=self.group)
        return torch.cat(parts, dim=dim)

    def first(self, own: Tensor) -> Tensor:
        """The first rank's tensor, which has the shape of everybody's own; bool or numbers."""
        sent = (own.byte() if own.dtype == torch.bool else own).contiguous().clone()
        torch.distributed.broadcast(sent, torch.distributed.get_global_rank(self.group, 0), group=self.group)
        return sent.to(own.dtype)

    def any(self, own: Tensor) -> Tensor:
        """What is true in one of the processes at least, place by place."""
        found = own.to(self.device, torch.uint8)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self.group)
        return found.bool()


def is_dtensor(value: Any) -> TypeGuard[Any]:
    """Is this a tensor that is spread over processes? Without the module nobody can have made one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def ranks_of(module: nn.Module) -> Ranks | None:
    """The group among which the parameters of a module are divided; None if they are whole."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    spread = next((parameter for parameter in module.parameters() if is_dtensor(parameter)), None)
    if spread is None or spread.device_mesh.size() == 1:
        return None
    mesh = spread.device_mesh
    return Ranks(mesh.get_group(mesh.ndim - 1), spread.to_local().device)
