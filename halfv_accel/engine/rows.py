"""Which rows of the residual stream a layer processes, as an index matrix, for batches of unequal rows.

Between layers the stream always has its full length [B, S, H]; a layer gets the rows listed here and its result is
written back. Therefore hidden states, logits and labels keep the shapes the caller knows, and a dropped row simply
holds its last state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Some positions of each sequence of a batch.

    Parameters
    ----------
    index : (B, n) long Tensor
        Positions, ascending among the valid ones.
    valid : (B, n) bool Tensor or None
        False where a shorter row is padded. A padding place points at a position outside the selection, so that
        writing its old value back collides with nothing. None when no row is padded.
    length : int
        S, the full length of the sequences.
    """

    index: Tensor
    valid: Tensor | None
    length: int

    @classmethod
    def packed_right(cls, mask: Tensor, counts: Sequence[int] | None = None) -> Rows:
        """Selected positions at the right end, padding on the left, as decoding wants it.

        Parameters
        ----------
        mask : (B, S) bool Tensor
        counts : sequence of int, optional
            How many each row selects; without them, the device is asked and waited for.
        """
        return cls._packed(mask, counts, left=False)

    @classmethod
    def packed_left(cls, mask: Tensor, counts: Sequence[int] | None = None) -> Rows:
        """Selected positions at the left end, so that place i is the row's i-th selected token."""
        return cls._packed(mask, counts, left=True)

    @classmethod
    def _packed(cls, mask: Tensor, counts: Sequence[int] | None, left: bool) -> Rows:
        counts = mask.sum(1).tolist() if counts is None else counts
        least, most = min(counts), max(counts)
        order = mask.byte().argsort(dim=1, descending=left, stable=True)
        index = order[:, :most] if left else order[:, mask.shape[1] - most :]
        return cls(index, None if least == most else mask.gather(1, index), mask.shape[1])

    def present(self) -> Tensor:
        """`valid`, spelled out when it is None: [B, n] bool."""
        return torch.ones_like(self.index, dtype=torch.bool) if self.valid is None else self.valid

    @cached_property
    def flat(self) -> Tensor:
        """Positions in all sequences laid end to end, [B * n]: whole rows are copied faster than single numbers."""
        batch = torch.arange(len(self.index), device=self.index.device)
        return (self.index + batch[:, None] * self.length).flatten()

    def gather(self, full: Tensor) -> Tensor:
        """Rows of a [B or 1, S, D] tensor: [B, n, D]."""
        index = self.index.flatten() if full.shape[0] == 1 else self.flat
        rows = full.flatten(0, 1).index_select(0, index.to(full.device))
        return rows.unflatten(0, self.index.shape)

    def scatter(self, full: Tensor, rows: Tensor) -> Tensor:
        """A copy of `full` with these rows replaced, on their device; padding places change nothing."""
        full = full.to(rows.device)
        if self.valid is not None:
            rows = torch.where(self.valid.to(rows.device)[..., None], rows, self.gather(full))
        changed = full.flatten(0, 1).index_copy(0, self.flat.to(rows.device), rows.to(full.dtype).flatten(0, 1))
        return changed.view_as(full)

    def to(self, device: torch.device) -> Rows:
        return Rows(self.index.to(device), None if self.valid is None else self.valid.to(device), self.length)

    def join(self, other: Rows) -> Rows:
        """These places followed by the other's."""
        index = torch.cat([self.index, other.index], dim=1)
        if self.valid is None and other.valid is None:
            return Rows(index, None, self.length)
        return Rows(index, torch.cat([self.present(), other.present()], dim=1), self.length)
