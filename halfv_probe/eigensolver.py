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

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float64).eps
TOLERANCE = 5e-7  # of an eigenvalue
BLOCKS = 16  # of the Krylov space; each further one makes the error at least ten times smaller
MORE_BLOCKS = 8  # where that almost did
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
    if gram.ndim > 2:
        return torch.stack([leading_eigenvalues(each, k) for each in gram])
    proven = proven_eigenvalues(gram, k)
    return all_eigenvalues(gram)[:k] if proven is None else proven


def all_eigenvalues(gram: Tensor) -> Tensor:
    """Every eigenvalue of positive semidefinite matrices [..., n, n]: [..., n], descending and not negative."""
    return torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0)  # rounding can leave tiny negatives


def proven_eigenvalues(gram: Tensor, k: int, start: Tensor | None = None) -> Tensor | None:
    """As `leading_eigenvalues` of one matrix, or None if a small space does not hold them, or cannot be proven to.

    ``start`` [block width, n] begins the Krylov space; by default it is random, from a fixed seed.
    """
    if start is None:
        start = torch.randn(block_width(k), len(gram), generator=torch.Generator().manual_seed(0), dtype=gram.dtype)
    work = torch.empty_like(gram)  # overwritten by both; asked for once, as memory of this size comes slowly
    space = KrylovSpace(gram, start.to(gram), min((BLOCKS + MORE_BLOCKS) * len(start), len(gram)), work)
    blocks = BLOCKS
    while blocks <= BLOCKS + MORE_BLOCKS:
        space.grow(blocks * len(start))
        ritz = ritz_values(gram, space.best(k + max(16, k // 2)), k)
        if ritz.error <= TOLERANCE and nothing_missed(gram, ritz, work):
            return ritz.values[:k].clamp(min=0)
        blocks += max(1, math.ceil(math.log10(max(ritz.error, TOLERANCE) / TOLERANCE)))
    return None


def block_width(k: int) -> int:
    return max(8, k // 4)


class KrylovSpace:
    """Orthonormal rows that span X, X G, X G^2, ..., and the matrix as seen from there.

    The first block is taken out of the matrix in float64: a mean token or massive activations have eigenvalues
    thousands of times larger than the k-th, which would drown in their rounding. Everything after is float32.
    """

    def __init__(self, gram: Tensor, start: Tensor, capacity: int, work: Tensor) -> None:
        self.first = orthonormal((gram @ start.T).T)
        images = (gram @ self.first.T).T  # the matrix is symmetric, and this order the faster one
        self.seen = images @ self.first.T
        self.residual = images - self.seen @ self.first
        half = images - self.seen @ self.first / 2
        # P G P with the projection P on the complement of the first block
        columns = torch.cat([self.first, half]).T.contiguous()
        self.rest = torch.addmm(gram, columns, torch.cat([half, self.first]), alpha=-1, out=work).float()
        self.rows = torch.empty(capacity, len(gram), dtype=torch.float32, device=gram.device)
        self.images = torch.empty_like(self.rows)  # of all rows but the first block's
        self.size = len(start)
        self.rows[: self.size] = self.first
        self.newest = self._complement(self.residual.float())

    def grow(self, size: int) -> None:
        """Add blocks until there are ``size`` rows, or as many as there is room for."""
        while self.size < min(size, len(self.rows)):
            block = self.newest[: len(self.rows) - self.size]
            added = slice(self.size, self.size + len(block))
            self.rows[added] = block
            self.images[added] = torch.mm(self.rest, block.T).T
            self.size = added.stop
            self.newest = self._complement(self.images[added])

    def best(self, count: int) -> Tensor:
        """Orthonormal float64 [count, n] that span the Ritz vectors with the largest values."""
        split = len(self.first)
        later = self.rows[split : self.size]
        across = self.residual @ later.double().T
        inner = (self.images[split : self.size] @ later.T).double()
        matrix = torch.cat([torch.cat([self.seen, across], dim=1), torch.cat([across.T, inner], dim=1)])
        _, turn = torch.linalg.eigh((matrix + matrix.T) / 2)
        turn = turn[:, -count:].T
        return orthonormal(turn[:, :split] @ self.first + (turn[:, split:].float() @ later).double())

    def _complement(self, block: Tensor) -> Tensor:
        """Orthonormal rows of what of a block lies outside the space; projected twice, as once leaves rounding."""
        rows = self.rows[: self.size]
        for _ in range(2):
            block = orthonormal(torch.addmm(block, block @ rows.T, rows, alpha=-1))
        return block


@dataclass(frozen=True)
class Ritz:
    """What a basis knows of the largest eigenvalues.

    ``basis`` V [m, n], the matrix ``seen`` in it [m, m], its eigenvalues ``values`` in descending order, ``tau`` the
    bound that the complement has to keep, ``gap`` how far theta_k is above, ``error`` the largest (mu_i - theta_i) /
    theta_i of the first k, less what float64 cannot tell.
    """

    basis: Tensor
    seen: Tensor
    values: Tensor
    tau: float
    gap: float
    error: float


def orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T)[0].T


def ritz_values(gram: Tensor, basis: Tensor, k: int) -> Ritz:
    images = (gram @ basis.T).T
    seen = images @ basis.T
    seen = (seen + seen.T) / 2
    values = torch.linalg.eigvalsh(seen).flip(0)
    largest, kth, least = (max(float(values[index]), 0.0) for index in (0, k - 1, -1))
    kth = max(kth, 8 * rounding(gram, largest))
    gap = (kth - least) / 4  # tau is nearer to theta_k than to where the rest probably ends
    if gap <= 0:
        return Ritz(basis, seen, values, kth, gap, 0.0 if largest == 0 else math.inf)
    residual = torch.addmm(images, seen, basis, alpha=-1)
    above = torch.linalg.eigvalsh(torch.addmm(seen, residual, residual.T, alpha=1 / gap)).flip(0)
    unresolved = 8 * EPSILON * largest
    error = float(((above - values - unresolved) / values.clamp(min=unresolved))[:k].max())
    return Ritz(basis, seen, values, kth - gap, gap, error)


def rounding(gram: Tensor, largest: float) -> float:
    """How far float64 may be off in an entry of a sum of matrices whose largest eigenvalue this is."""
    return len(gram) * EPSILON * largest


def nothing_missed(gram: Tensor, ritz: Ritz, work: Tensor) -> bool:
    """Is every eigenvalue on the complement of the basis below tau? Proven by a Cholesky factorisation.

    One that succeeds in a precision with unit roundoff u proves positive the matrix plus (n + 1) u times its trace
    (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Theorem 10.7); so much is subtracted before.
    float32 is tried first, if the gap leaves room for that.
    """
    if float(ritz.values[0]) <= 0:
        return not gram.any()
    columns = ritz.basis.T.contiguous()
    shifted = torch.addmm(gram, columns @ ritz.seen, columns.T, beta=-1, out=work)
    shifted.diagonal().add_(ritz.tau - rounding(gram, float(ritz.values[0])))
    trace = float(shifted.trace())
    for dtype in (torch.float32, torch.float64):
        slack = (len(gram) + 4) * torch.finfo(dtype).eps / 2 * trace
        if slack < 2 * ritz.gap:
            lowered = shifted.to(dtype)  # a copy, or in float64 itself, which is not used again
            lowered.diagonal().sub_(slack)
            if int(torch.linalg.cholesky_ex(lowered)[1]) == 0:
                return True
    return False
