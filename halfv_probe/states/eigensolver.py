"""The largest eigenvalues of a Gram matrix, found fast and then proven.

Hidden states have tens of strong directions among thousands. A block Krylov space catches those with a few products of
the matrix and a narrow block, most of them in float32; how well it did is measured in float64. On an orthonormal basis
V (rows), H = V G V^T has the Ritz values theta_1 >= theta_2 >= ..., and two facts enclose the eigenvalues lambda_i of
G, however V was found:

Below.  theta_i <= lambda_i (Cauchy interlacing).
Above.  Split G along V and its complement into [[H, B^T], [B, C]] and let C < tau < theta_k. For sigma >= theta_k the
        Schur complement H - sigma + B^T (sigma - C)^-1 B has as many positive eigenvalues as G has above sigma
        (Sylvester's law of inertia), and it is at most H + B^T B / (theta_k - tau) - sigma. So, for i <= k, lambda_i <=
        mu_i, the eigenvalues of H + B^T B / (theta_k - tau). B^T B = R R^T with the residual R = V G - H V.
tau.    C < tau holds if tau - G + V^T H V is positive definite, for tau - C is its lower right block. One Cholesky
        factorisation decides that, and with it that no eigenvector was missed.

The theta_i are taken if mu_i - theta_i is at most 5e-7 theta_i, give or take what float64 resolves: some 1e-16
lambda_1. Otherwise, as for a spectrum so flat that no small space holds its largest part, all eigenvalues are computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float64).eps
TOLERANCE = 5e-7  # of an eigenvalue
BLOCKS = 16  # of the Krylov space; each further one makes the error at least ten times smaller
MORE_BLOCKS = 8  # where that almost did
BORDER = 16  # rows and columns; see `with_border`
PARTIAL_FROM = 3  # a matrix of less than so many Krylov spaces is decomposed as quickly as a whole


def leading_eigenvalues(gram: Tensor, k: int) -> Tensor:
    """The k largest eigenvalues of a positive semidefinite matrix.

    Parameters
    ----------
    gram : (..., n, n) tensor
        Symmetric and positive semidefinite, float64, any device; one or a batch.
    k : int
        How many; all n of them when k > n.

    Returns
    -------
    Tensor
        float64 [..., min(k, n)], descending and not negative. Equal to those of ``torch.linalg.eigvalsh`` within a
        relative 1e-6; those below 1e-11 of the largest, within that.
    """
    if gram.shape[-1] < PARTIAL_FROM * BLOCKS * block_width(k):
        return all_eigenvalues(gram)[..., :k]
    if gram.ndim > 2 and gram.device.type == "cpu":  # one after the other is as fast there, and takes less memory
        return torch.stack([leading_eigenvalues(each, k) for each in gram])
    if gram.ndim > 3:
        return leading_eigenvalues(gram.flatten(0, -3), k).unflatten(0, gram.shape[:-2])
    return in_one_go(gram, k)


def in_one_go(gram: Tensor, k: int) -> Tensor:
    """As `leading_eigenvalues`, of one matrix or of a batch [b, n, n]."""
    values, proven = proven_eigenvalues(gram, k)
    if not proven.all():
        values[~proven] = all_eigenvalues(gram[~proven])[..., :k]
    return values


def all_eigenvalues(gram: Tensor) -> Tensor:
    """Every eigenvalue of positive semidefinite matrices [..., n, n]: [..., n], descending and not negative."""
    return torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0)  # rounding can leave tiny negatives


def proven_eigenvalues(gram: Tensor, k: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `leading_eigenvalues` of one matrix or a batch [b, n, n], and of which they are proven [] or [b].

    They are not where a small space does not hold them, and the values there are not to be used. ``start`` [block
    width, n] begins the Krylov space; by default it is random, from a fixed seed.
    """
    size = gram.shape[-1]
    if start is None:
        start = torch.randn(block_width(k), size, generator=torch.Generator().manual_seed(0), dtype=gram.dtype)
    work = torch.empty_like(gram)  # overwritten by both; asked for once, as memory of this size comes slowly
    space = KrylovSpace(gram, start.to(gram), min((BLOCKS + MORE_BLOCKS) * len(start), size), work)
    values = gram.new_zeros(*gram.shape[:-2], k)
    proven = torch.zeros(gram.shape[:-2], dtype=torch.bool, device=gram.device)
    blocks = BLOCKS
    while blocks <= BLOCKS + MORE_BLOCKS:
        space.grow(blocks * len(start))
        ritz = ritz_values(gram, space.best(k + max(16, k // 2)), k)
        good = ~proven & (ritz.error <= TOLERANCE)
        if good.any():
            good = good & nothing_missed(gram, ritz, work)
            values = ritz.values[..., :k].clamp(min=0).where(good[..., None], values)
            proven = proven | good
        nearest = float(ritz.error.where(~proven, math.inf).min())  # the next to converge sets the step
        if not math.isfinite(nearest):
            break
        blocks += max(1, math.ceil(math.log10(max(nearest, TOLERANCE) / TOLERANCE)))
    return values, proven


def block_width(k: int) -> int:
    return max(8, k // 4)


class KrylovSpace:
    """Orthonormal rows that span X, X G, X G^2, ..., and the matrix as seen from there.

    The first block is taken out of the matrix in float64: a mean token or massive activations have eigenvalues
    thousands of times larger than the k-th, which would drown in their rounding. Everything after is float32.
    """

    def __init__(self, gram: Tensor, start: Tensor, capacity: int, work: Tensor) -> None:
        self.first = orthonormal((gram @ start.T).mT)
        images = (gram @ self.first.mT).mT  # the matrix is symmetric, and this order the faster one
        self.seen = images @ self.first.mT
        self.residual = images - self.seen @ self.first
        half = images - self.seen @ self.first / 2
        # P G P with the projection P on the complement of the first block
        columns = torch.cat([self.first, half], dim=-2).mT.contiguous()
        self.rest = plus_product(gram, columns, torch.cat([half, self.first], dim=-2), alpha=-1, out=work).float()
        self.rows = torch.empty(*gram.shape[:-2], capacity, gram.shape[-1], dtype=torch.float32, device=gram.device)
        self.images = torch.empty_like(self.rows)  # of all rows but the first block's
        self.size = len(start)
        self.rows[..., : self.size, :] = self.first
        self.newest = self._complement(self.residual.float())

    def grow(self, size: int) -> None:
        """Add blocks until there are ``size`` rows, or as many as there is room for."""
        capacity = self.rows.shape[-2]
        while self.size < min(size, capacity):
            block = self.newest[..., : capacity - self.size, :]
            added = slice(self.size, self.size + block.shape[-2])
            self.rows[..., added, :] = block
            self.images[..., added, :] = (self.rest @ block.mT).mT
            self.size = added.stop
            self.newest = self._complement(self.images[..., added, :])

    def best(self, count: int) -> Tensor:
        """Orthonormal float64 [..., count, n] that span the Ritz vectors with the largest values."""
        split = self.first.shape[-2]
        later = self.rows[..., split : self.size, :]
        across = self.residual @ later.double().mT
        inner = (self.images[..., split : self.size, :] @ later.mT).double()
        matrix = torch.cat([torch.cat([self.seen, across], dim=-1), torch.cat([across.mT, inner], dim=-1)], dim=-2)
        _, turn = torch.linalg.eigh((matrix + matrix.mT) / 2)
        turn = turn[..., -count:].mT
        return orthonormal(turn[..., :split] @ self.first + (turn[..., split:].float() @ later).double())

    def _complement(self, block: Tensor) -> Tensor:
        """Orthonormal rows of what of a block lies outside the space; projected twice, as once leaves rounding."""
        rows = self.rows[..., : self.size, :]
        for _ in range(2):
            block = orthonormal(plus_product(block, block @ rows.mT, rows, alpha=-1))
        return block


@dataclass(frozen=True)
class Ritz:
    """What a basis knows of the largest eigenvalues of each matrix.

    ``basis`` V [..., m, n], the matrix ``seen`` in it [..., m, m], its eigenvalues ``values`` [..., m] in descending
    order, ``tau`` [...] the bound that the complement has to keep, ``gap`` how far theta_k is above, ``error`` the
    largest (mu_i - theta_i) / theta_i of the first k, less what float64 cannot tell.
    """

    basis: Tensor
    seen: Tensor
    values: Tensor
    tau: Tensor
    gap: Tensor
    error: Tensor


def orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.mT)[0].mT


def plus_product(matrix: Tensor, left: Tensor, right: Tensor, **options: Any) -> Tensor:
    """``torch.addmm``, or of a batch."""
    return (torch.addmm if matrix.ndim == 2 else torch.baddbmm)(matrix, left, right, **options)


def ritz_values(gram: Tensor, basis: Tensor, k: int) -> Ritz:
    images = (gram @ basis.mT).mT
    seen = images @ basis.mT
    seen = (seen + seen.mT) / 2
    values = torch.linalg.eigvalsh(seen).flip(-1)
    largest, kth, least = (values[..., index].clamp(min=0) for index in (0, k - 1, -1))
    kth = kth.maximum(8 * rounding(gram, largest))
    gap = (kth - least) / 4  # tau is nearer to theta_k than to where the rest probably ends
    coupling = plus_product(images, seen, basis, alpha=-1) / gap.where(gap > 0, 1).sqrt()[..., None, None]
    above = torch.linalg.eigvalsh(plus_product(seen, coupling, coupling.mT)).flip(-1)
    unresolved = (8 * EPSILON * largest)[..., None]
    error = ((above - values - unresolved) / values.maximum(unresolved))[..., :k].amax(dim=-1)
    error = error.where(gap > 0, math.inf).where(largest > 0, 0)  # without a gap, nothing is known
    return Ritz(basis, seen, values, kth - gap, gap, error)


def rounding(gram: Tensor, largest: Tensor) -> Tensor:
    """How far float64 may be off in an entry of a sum of matrices whose largest eigenvalue this is."""
    return gram.shape[-1] * EPSILON * largest


def nothing_missed(gram: Tensor, ritz: Ritz, work: Tensor) -> Tensor:
    """Of which matrices [...] is every eigenvalue on the complement of the basis below tau?

    Proven by a Cholesky factorisation. One that succeeds in a precision with unit roundoff u proves positive the matrix
    plus (n + 1) u times its trace (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Theorem 10.7); so
    much is subtracted before. float32 is tried first, if the gap leaves room for that.
    """
    largest = ritz.values[..., 0]
    some = largest > 0
    proven = ~some if some.all() else ~some & ~gram.flatten(-2).any(dim=-1)  # of nothing but zeros
    columns = ritz.basis.mT.contiguous()
    shifted = plus_product(gram, columns @ ritz.seen, columns.mT, beta=-1, out=work)
    diagonal = shifted.diagonal(dim1=-2, dim2=-1)
    diagonal.add_((ritz.tau - rounding(gram, largest))[..., None])
    trace = diagonal.sum(dim=-1)
    for dtype in (torch.float32, torch.float64):
        slack = (gram.shape[-1] + 4) * torch.finfo(dtype).eps / 2 * trace
        room = some & ~proven & (slack < 2 * ritz.gap)
        if room.any():
            lowered = with_border(shifted, dtype)
            lowered.diagonal(dim1=-2, dim2=-1)[..., : gram.shape[-1]].sub_(slack[..., None])
            proven = proven | (room & (torch.linalg.cholesky_ex(lowered)[1] == 0))
    return proven


def with_border(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in this precision that is positive definite if and only if the matrix is, and factorised faster.

    Entries a multiple of 1 KiB apart compete for the same few lines of a CPU's cache: where columns are, an identity is
    put behind the matrix.
    """
    size = matrix.shape[-1]
    border = BORDER if size % 256 == 0 else 0
    copy = torch.zeros(*matrix.shape[:-2], size + border, size + border, dtype=dtype, device=matrix.device)
    copy[..., :size, :size] = matrix
    copy[..., size:, size:].diagonal(dim1=-2, dim2=-1).fill_(1)
    return copy
