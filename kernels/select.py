"""The κ candidates of largest similarity, exactly, for every anchor (ties: lowest column).

1. `_maxima`: columns j ≡ g (mod G) form group g, G ≥ 4κ. The κ-th largest of the G group maxima is a lower
   bound of the κ-th largest similarity, since κ groups hold a value at least as large.
2. `_bounds`: that bound, by bisection on the bits of the maxima.
3. `_survivors`: recomputes the similarities and keeps what reaches the bound, 1.15·κ a row on average.
4. `_exact`: rows with more survivors than the buffer holds (many equal similarities, or the best ones in few
   groups) are done by counting instead, 32 passes. Blocks without such a row return at once.
5. `_rank`: puts the survivors of a row in order: each counts how many go before it.

Similarities exist only as tiles. Survivors arrive in any order (an integer atomic counts them), but every
run keeps the same set and their order has no ties, so the result is a function of the inputs alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile import (
    is_touched,
    load_tile,
    products,
    rows_of,
    similarity_tiling,
    skip_of,
    streamed_products,
    touched_tiles,
    visible,
)

# The work of `_rank` grows with κ²; larger κ are left to `_exact`.
MAX_RANKED = 1024
# Group maxima and survivors of this many bytes at once; more anchors are done in turns.
WORKSPACE = 64 * 2**20


@triton.jit
def _ordered(s):
    """uint32 that compares as the float does; NaN, of either sign, is the largest, −0 equals 0."""
    bits = tl.where(s == s, tl.where(s == 0, 0.0, s), float("nan")).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def _value(ordered):
    """Inverse of `_ordered`."""
    bits = ordered.to(tl.int32, bitcast=True)
    return (bits ^ ((~bits >> 31) | -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _trial(found, i):
    """`found` with its i-th bit from the top set."""
    return found | (tl.full(found.shape, 1, tl.uint32) << (31 - i))


@triton.jit
def _maxima(
    anchors, candidates, skip, maxima, groups,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    first = tl.program_id(1) * N
    lanes = tl.arange(0, N)
    depth = tl.arange(0, DEPTH)
    anchor_tile = load_tile(anchors, head, row, depth)
    touched = touched_tiles(skip, row, anchors.rows, first, groups, N)
    best = tl.full((M, N), float("-inf"), tl.float32)
    for member in range(tl.cdiv(candidates.rows - first, groups)):
        start = member * groups + first
        column = start + lanes
        tile = load_tile(candidates, head, column, depth)
        s = products(anchor_tile, tile, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
        if (start + N > candidates.rows) | is_touched(touched, member):
            shown = visible(skip, row[:, None], anchors.rows, column[None, :], candidates.rows)
            s = tl.where(shown, s, float("-inf"))
        best = tl.maximum(best, s)
    flat = head * anchors.rows + row.to(tl.int64)
    tl.store(
        maxima + flat[:, None] * groups + (first + lanes)[None, :],
        best,
        (row < anchors.rows)[:, None] & (first + lanes < groups)[None, :],
    )


@triton.jit
def _bounds(maxima, bounds, count, groups, top_k, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, GROUPS)
    mask = (row < count)[:, None] & (lanes < groups)[None, :]
    key = _ordered(tl.load(maxima + row[:, None] * groups + lanes[None, :], mask, other=float("-inf")))
    found = tl.zeros((ROWS,), tl.uint32)
    for i in range(32):
        trial = _trial(found, i)
        reached = tl.sum((key >= trial[:, None]).to(tl.int32), axis=1)
        found = tl.where(reached >= top_k, trial, found)
    # Hidden columns are −∞ and must stay below the bound.
    tl.store(bounds + row, tl.maximum(_value(found), -3.4e38), row < count)


@triton.jit
def _survivors(
    anchors, candidates, skip, bounds, counts, values, indices, groups, capacity,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    first = tl.program_id(1) * N
    lanes = tl.arange(0, N)
    depth = tl.arange(0, DEPTH)
    anchor_tile = load_tile(anchors, head, row, depth)
    touched = touched_tiles(skip, row, anchors.rows, first, groups, N)
    # int32 reaches every survivor: WORKSPACE is far smaller.
    flat = head * anchors.rows + row
    inside = (row < anchors.rows)[:, None]
    bound = tl.load(bounds + flat, row < anchors.rows, other=float("inf"))
    counter = tl.broadcast_to((counts + flat)[:, None], (M, N))
    for member in range(tl.cdiv(candidates.rows - first, groups)):
        start = member * groups + first
        column = start + lanes
        tile = load_tile(candidates, head, column, depth)
        s = products(anchor_tile, tile, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
        if (start + N > candidates.rows) | is_touched(touched, member):
            shown = visible(skip, row[:, None], anchors.rows, column[None, :], candidates.rows)
            s = tl.where(shown, s, float("-inf"))
        # Not `s >= bound`: a NaN must survive, to be seen in the result.
        keep = ((s < bound[:, None]) == 0) & inside
        slot = tl.atomic_add(counter, 1, keep, sem="relaxed")
        fits = keep & (slot < capacity)
        at = (flat * capacity)[:, None] + slot
        tl.store(values + at, s, fits)
        tl.store(indices + at, tl.broadcast_to(column[None, :], (M, N)), fits)


@triton.jit
def _exact(
    anchors, candidates, skip, counts, values, indices, top_k, capacity,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    flat = head * anchors.rows + row.to(tl.int64)
    count = tl.load(counts + flat, row < anchors.rows, other=top_k)
    redo = (count < top_k) | (count > capacity)
    if tl.max(redo.to(tl.int32), axis=0) > 0:
        lanes = tl.arange(0, N)
        found = tl.zeros((M,), tl.uint32)
        above = tl.zeros((M,), tl.int32)
        for i in range(32):
            trial = _trial(found, i)
            reached = tl.zeros((M,), tl.int32)
            for start in range(0, candidates.rows, N):
                column = start + lanes
                s = streamed_products(anchors, row, candidates, column, head, DEPTH, PRECISION)
                shown = visible(skip, row[:, None], anchors.rows, column[None, :], candidates.rows)
                key = _ordered(tl.where(shown, s, float("-inf")))
                reached += tl.sum((key >= trial[:, None]).to(tl.int32), axis=1)
            # The last trial that fails is found + 1, so this ends as the number of larger similarities.
            above = tl.where(reached >= top_k, above, reached)
            found = tl.where(reached >= top_k, trial, found)
        used = tl.zeros((M,), tl.int32)
        ties = above
        for start in range(0, candidates.rows, N):
            column = start + lanes
            s = streamed_products(anchors, row, candidates, column, head, DEPTH, PRECISION)
            shown = visible(skip, row[:, None], anchors.rows, column[None, :], candidates.rows)
            key = _ordered(tl.where(shown, s, float("-inf")))
            tie = (key == found[:, None]).to(tl.int32)
            rank = ties[:, None] + tl.cumsum(tie, axis=1)
            take = (key > found[:, None]) | ((tie != 0) & (rank <= top_k))
            taken = take.to(tl.int32)
            at = (flat * capacity)[:, None] + used[:, None] + tl.cumsum(taken, axis=1) - 1
            tl.store(values + at, s, take & redo[:, None])
            tl.store(indices + at, tl.broadcast_to(column[None, :], (M, N)), take & redo[:, None])
            used += tl.sum(taken, axis=1)
            ties += tl.sum(tie, axis=1)
        tl.store(counts + flat, used, redo)


@triton.jit
def _keys(values, indices, at, mask):
    """int64 by similarity, then lowest column; where masked, below all others."""
    value = _ordered(tl.load(values + at, mask, other=0.0)).to(tl.int64)
    column = tl.load(indices + at, mask, other=0).to(tl.int64)
    return tl.where(mask, (value << 31) | (0x7FFFFFFF - column), -1)


@triton.jit
def _rank(
    values, indices, counts, similarities, chosen, out_head, top_k, capacity,
    BLOCK: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    flat = head * tl.num_programs(0) + row
    count = tl.load(counts + flat)
    for start in range(0, count, BLOCK):
        lanes = start + tl.arange(0, BLOCK)
        key = _keys(values, indices, flat * capacity + lanes, lanes < count)
        rank = tl.zeros((BLOCK,), tl.int32)
        for other_start in range(0, count, OTHERS):
            others = other_start + tl.arange(0, OTHERS)
            other = _keys(values, indices, flat * capacity + others, others < count)
            rank += tl.sum((other[None, :] > key[:, None]).to(tl.int32), axis=1)
        at = flat * capacity + lanes
        out = head * out_head + row * top_k + rank
        mask = (lanes < count) & (rank < top_k)
        tl.store(similarities + out, tl.load(values + at, mask), mask)
        tl.store(chosen + out, tl.load(indices + at, mask), mask)


def hardest(anchors: Tensor, candidates: Tensor, skip: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` candidates of largest inner product with each anchor.

    Args:
        anchors: (C, A, d), any strides.
        candidates: (C, B, d), any strides.
        skip: (A, S) int64, distinct columns that are not candidates of the anchor, or None.
        top_k: 1 ≤ κ ≤ B − S.

    Returns:
        similarities (C, A, κ) float32 and columns (C, A, κ) int32. By falling similarity, then column, for
        κ ≤ `MAX_RANKED`; by column above.
    """
    heads, rows, width = anchors.shape
    device = anchors.device
    tiling = similarity_tiling(anchors, width)
    m, n = int(tiling["M"]), int(tiling["N"])
    table = rows_of(candidates)
    similarities = torch.empty(heads, rows, top_k, device=device)
    chosen = torch.empty(heads, rows, top_k, dtype=torch.int32, device=device)
    # Rarely run, so small: registers for its sums, and it need not repeat the bits of the other kernels.
    counting = {"M": 32, "N": 32, "DEPTH": 32, "PRECISION": tiling["PRECISION"], "num_warps": 4, "num_stages": 2}
    counting["maxnreg"] = 255
    if top_k > MAX_RANKED:
        todo = torch.full((heads, rows), -1, dtype=torch.int32, device=device)
        _exact[triton.cdiv(rows, 32), heads](
            rows_of(anchors), table, skip_of(skip, chosen), todo, similarities, chosen, top_k, top_k,
            **counting,
        )  # fmt: skip
        return similarities, chosen

    groups = _groups(triton.cdiv(rows, m) * heads, table.rows, top_k, n)
    capacity = max(32, triton.next_power_of_2(2 * top_k))
    turn = max(m, WORKSPACE // (4 * heads * (groups + 2 * capacity)) // m * m)
    for start in range(0, rows, turn):
        part = rows_of(anchors[:, start : start + turn])
        size = part.rows
        hidden = skip_of(None if skip is None else skip[start : start + turn], chosen)
        maxima = torch.empty(heads, size, groups, device=device)
        bounds = torch.empty(heads, size, device=device)
        counts = torch.zeros(heads, size, dtype=torch.int32, device=device)
        values = torch.empty(heads, size, capacity, device=device)
        indices = torch.empty(heads, size, capacity, dtype=torch.int32, device=device)

        grid = (triton.cdiv(size, m), triton.cdiv(groups, n), heads)
        _maxima[grid](part, table, hidden, maxima, groups, **tiling)
        together = max(1, 2048 // groups)
        _bounds[triton.cdiv(heads * size, together),](
            maxima, bounds, heads * size, groups, top_k, together, groups, num_warps=4
        )
        _survivors[grid](part, table, hidden, bounds, counts, values, indices, groups, capacity, **tiling)
        _exact[triton.cdiv(size, 32), heads](part, table, hidden, counts, values, indices, top_k, capacity, **counting)
        _rank[size, heads](
            values,
            indices,
            counts,
            similarities[:, start:],
            chosen[:, start:],
            rows * top_k,
            top_k,
            capacity,
            BLOCK=128,
            OTHERS=32,
            num_warps=4,
        )
    return similarities, chosen


def _groups(blocks: int, columns: int, top_k: int, tile: int) -> int:
    """Number of groups: a power of two, at least 4κ, and enough to fill a GPU if there are few anchors."""
    groups = max(tile, triton.next_power_of_2(4 * top_k))
    while groups < 8192 and blocks * (groups // tile) < 256:
        groups *= 2
    return min(groups, max(tile, triton.next_power_of_2(columns)))
