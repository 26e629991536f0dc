"""Farthest point sampling without a word from the host: one program per row of the batch makes all of its picks.

A program keeps, for each token, the cosine to the nearest chosen one. A pick is the smallest of them; its own cosines
then raise the others'. Three marks need no list beside that: TAKEN (chosen, or padding), UNSEEN (no cosine yet) and
WAITING (an anchor whose turn has not come). Since WAITING is smallest, anchors are picked first, and since UNSEEN is
next, a row without anchors begins at its first token.

Where a pick's cosines come from:

- a table of all of them, one batched product, while it takes no more than TABLE_BYTES;
- else a pool: the cosines of the POOL tokens that are farthest at the moment. Whoever is far now is likely to be
  picked soon. The program stops at the first pick that has left the pool, and the next round makes a new pool. The
  rounds are counted beforehand, since asking the device how far it came would make the host wait;
- what is left after the last round, usually nothing, is computed from the states, pick by pick.

Nothing that the host does depends on a value on the device, so it never waits for one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

TABLE_BYTES = 1 << 30  # a table for 16,384 tokens; longer rows take pools
POOL = 1024  # rows of a pool; its product is large enough to run at full speed
ROUNDS = 32  # pools at most
TILE = 128  # tokens, and columns of their states, that a program multiplies at a time
HALF = (torch.float16, torch.bfloat16)
WAITING, UNSEEN, TAKEN = -torch.inf, -3.0, torch.inf  # all cosines lie between the last two


def farthest_points(states: Tensor, present: Tensor, anchors: Tensor, budget: Tensor) -> Tensor:
    """Grow the anchors to the budget. Arguments and result: see halfv_accel.strategies.farthest_points."""
    batch, width, _ = states.shape
    if not present.numel():
        return anchors & present
    most = max(1, TABLE_BYTES // (4 * width * width))  # rows of the batch that share a table
    parts = [range(start, min(start + most, batch)) for start in range(0, batch, most)]
    chosen = [_grow(*(each[part.start : part.stop] for each in (states, present, anchors, budget))) for part in parts]
    return torch.cat(chosen)


def _grow(states: Tensor, present: Tensor, anchors: Tensor, budget: Tensor) -> Tensor:
    batch, width, hidden = states.shape
    # Half precision stays as it is: its products are exact in float32, and tensor cores make them. Lengths come after.
    half = states.dtype in HALF
    vectors = (states if half else F.normalize(states.float(), dim=-1)).contiguous()
    scale = vectors.float().norm(dim=-1).clamp_min(1e-12).reciprocal() if half else torch.ones_like(vectors[..., 0])
    nearest = torch.full((batch, width), UNSEEN, dtype=torch.float32, device=states.device)
    nearest.masked_fill_(anchors, WAITING).masked_fill_(~present, TAKEN)
    left = torch.minimum(torch.maximum(budget, (anchors & present).sum(1)), present.sum(1))
    block = triton.next_power_of_2(width)
    warps = 32 if block > 16384 else min(16, max(1, block // 512))  # a thread holds 16 to 32 tokens
    with torch.cuda.device_of(states):  # Triton launches on the current device
        if 4 * width * width <= TABLE_BYTES:
            table = _cosines(vectors, scale, None)
            _grow_from_rows[(batch,)](table, left, nearest, left, width, width, True, block, num_warps=warps)
            return (nearest == TAKEN) & present
        pool = min(POOL, width)
        for _ in range(min(ROUNDS, -(-width // pool))):
            members = nearest.argsort(dim=1, stable=True)[:, :pool]  # in the order of the picks: its first is the next
            places = torch.arange(pool, dtype=torch.int32, device=states.device).expand(batch, -1)
            slot = torch.full((batch, width), -1, dtype=torch.int32, device=states.device).scatter(1, members, places)
            rows = _cosines(vectors, scale, members)
            _grow_from_rows[(batch,)](rows, slot, nearest, left, width, pool, False, block, num_warps=warps)
        first = nearest.argmin(dim=1)
        _grow_from_states[(batch,)](vectors, scale, nearest, left, first, width, hidden, TILE, TILE, num_warps=16)
    return (nearest == TAKEN) & present


def _cosines(vectors: Tensor, scale: Tensor, members: Tensor | None) -> Tensor:
    """Cosines of the members (of all, if None) with every token: [B, members, N] float32."""
    some, lengths = vectors, scale
    if members is not None:
        some = vectors.gather(1, members[..., None].expand(-1, -1, vectors.shape[-1]))
        lengths = scale.gather(1, members)
    if vectors.dtype not in HALF:
        return some @ vectors.mT
    if vectors.is_cuda:
        products = torch.bmm(some, vectors.mT, out_dtype=torch.float32)
    else:  # the interpreter
        products = some.float() @ vectors.float().mT
    return products.mul_(lengths[:, :, None]).mul_(scale[:, None, :])


@triton.jit
def _grow_from_rows(  # type: ignore[no-untyped-def]
    rows,  # [B, M, N] float32: cosines
    slots,  # [B, N] int32: a token's place in the pool, -1 outside; not read with a table
    nearest,  # [B, N] float32, updated
    left,  # [B] int64: picks to make, updated
    width,  # N
    pool,  # M
    TABLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rows += row * pool * width
    slots += row * width
    nearest += row * width
    places = tl.arange(0, BLOCK)
    inside = places < width
    near = tl.load(nearest + places, mask=inside, other=float("inf"))
    steps = tl.load(left + row)
    pick = tl.argmin(near, axis=0)  # the lowest of equal ones
    at = pick if TABLE else tl.load(slots + pick)
    while (steps > 0) & (at >= 0):
        cosine = tl.load(rows + at.to(tl.int64) * width + places, mask=inside, other=0.0)
        near = tl.where((cosine > near) & (near > float("-inf")), cosine, near)  # a NaN is not greater
        near = tl.where(places == pick, float("inf"), near)
        pick = tl.argmin(near, axis=0)
        at = pick if TABLE else tl.load(slots + pick)
        steps -= 1
    tl.store(nearest + places, near, mask=inside)
    tl.store(left + row, steps)


@triton.jit
def _grow_from_states(  # type: ignore[no-untyped-def]
    vectors,  # [B, N, H]
    scale,  # [B, N] float32: cosine = product of two vectors and of their scales
    nearest,  # [B, N] float32, updated
    left,  # [B] int64: picks to make
    first,  # [B] int64: the next pick
    width,  # N
    hidden,  # H
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    vectors += row * width * hidden
    scale += row * width
    nearest += row * width
    pick = tl.load(first + row)
    for _ in range(tl.load(left + row)):
        own = vectors + pick * hidden
        own_scale = tl.load(scale + pick)
        best = float("inf")
        best_at = pick
        for start in range(0, width, TOKENS):
            places = start + tl.arange(0, TOKENS)
            inside = places < width
            products = tl.zeros([TOKENS, COLUMNS], tl.float32)
            for column in range(0, hidden, COLUMNS):
                columns = column + tl.arange(0, COLUMNS)
                real = columns < hidden
                mine = tl.load(own + columns, mask=real, other=0.0).to(tl.float32)
                tile = vectors + places.to(tl.int64)[:, None] * hidden + columns[None, :]
                theirs = tl.load(tile, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32)
                products += theirs * mine[None, :]
            cosine = tl.sum(products, axis=1) * tl.load(scale + places, mask=inside, other=0.0) * own_scale
            near = tl.load(nearest + places, mask=inside, other=float("inf"))
            near = tl.where((cosine > near) & (near > float("-inf")), cosine, near)
            near = tl.where(places == pick, float("inf"), near)
            tl.store(nearest + places, near, mask=inside)
            least, at = tl.min(near, axis=0, return_indices=True)
            nearer = least < best  # of equal ones the earlier tile's stays
            best_at = tl.where(nearer, (start + at).to(tl.int64), best_at)
            best = tl.where(nearer, least, best)
        pick = best_at
        tl.debug_barrier()  # the next pass reads what this one stored
