"""Which rows of the residual stream a layer processes, as an index matrix, for batches of unequal rows.

Between layers the stream always has its full length [B, S, H]; a layer gets the rows listed here and its result is
written back. Therefore hidden states, logits and labels keep the shapes the caller knows, and a dropped row simply
holds its last state.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    index: Tensor
    valid: Tensor | None

    @classmethod
    def packed_right(cls, mask: Tensor) -> Rows:
        """Selected positions at the right end, padding on the left, as decoding wants it."""
        return cls._packed(mask, left=False)

    @classmethod
    def packed_left(cls, mask: Tensor) -> Rows:
        """Selected positions at the left end, so that place i is the row's i-th selected token."""
        return cls._packed(mask, left=True)

    @classmethod
    def _packed(cls, mask: Tensor, left: bool) -> Rows:
        counts = mask.sum(1)
        least, most = torch.stack(counts.aminmax()).tolist()  # the one host synchronisation
        order = mask.byte().argsort(dim=1, descending=left, stable=True)
        index = order[:, :most] if left else order[:, mask.shape[1] - most :]
        return cls(index, None if least == most else mask.gather(1, index))

    def present(self) -> Tensor:
        """`valid`, spelled out when it is None: [B, n] bool."""
        return torch.ones_like(self.index, dtype=torch.bool) if self.valid is None else self.valid

    def gather(self, full: Tensor) -> Tensor:
        """Rows of a [B or 1, S, D] tensor: [B, n, D]."""
        full = full.expand(self.index.shape[0], -1, -1)
        return full.gather(1, self.index.to(full.device)[..., None].expand(-1, -1, full.shape[-1]))

    def scatter(self, full: Tensor, rows: Tensor) -> Tensor:
        """A copy of `full` with these rows replaced, on their device; padding places change nothing."""
        full = full.to(rows.device)
        if self.valid is not None:
            rows = torch.where(self.valid.to(rows.device)[..., None], rows, self.gather(full))
        return full.scatter(1, self.index.to(rows.device)[..., None].expand_as(rows), rows.to(full.dtype))

    def to(self, device: torch.device) -> Rows:
        return Rows(self.index.to(device), None if self.valid is None else self.valid.to(device))

    def join(self, other: Rows) -> Rows:
        """These places followed by the other's."""
        index = torch.cat([self.index, other.index], dim=1)
        if self.valid is None and other.valid is None:
            return Rows(index, None)
        return Rows(index, torch.cat([self.present(), other.present()], dim=1))
