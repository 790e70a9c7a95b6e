"""The lists of columns above the bound, read from the bits; those of crowded rows are halved when they are full."""

import triton
import triton.language as tl

from ..launch import launched
from ..tile import load_tile, visible
from .groups import MEMBERS, group_of, start_of
from .ranks import best_of, last_of, ordered

# Columns formed at once for a crowded row.
STRIDE = tl.constexpr(32)

# The key of NaN.
NAN = tl.constexpr(0xFFC00000)


@triton.jit
def _population(x):
    """Set bits among the even ones."""
    x = (x & 0x11111111) + ((x >> 2) & 0x11111111)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101) >> 24


@triton.jit
def _above(word):
    """Of a word of bits: bit 30 − 2j is set if its j-th candidate is above the bound."""
    return (word >> 1) & ~word & 0x55555555


@triton.jit
def _pair(words, groups, group, member, mask):
    """The two bits of a candidate: 1 below the bound, 2 above it, 0 or 3 at it."""
    word = tl.load(words + (member // MEMBERS.value * groups + group), mask, other=0)
    return (word >> (2 * (MEMBERS.value - 1 - member % MEMBERS.value))) & 3


@triton.jit
def _above_in_groups(words, count, groups, group, mask):
    """Columns above the bound in each group."""
    total = tl.load(words + group, mask, other=0)
    total = _population(_above(total))
    for word in range(1, count):
        total += _population(_above(tl.load(words + (word * groups + group), mask, other=0)))
    return total


@launched("rows", "candidates")
@triton.jit
def _select_lists(
    maxima, bounds, words, skip, counts, keys, columns, rows, candidates, shift, top_k, capacity,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    flat = tl.program_id(1).to(tl.int64) * rows + row
    groups = N << shift
    members = tl.cdiv(candidates, groups)
    count = tl.cdiv(members, MEMBERS.value)
    words += (flat * count * groups)[:, None]
    maxima += (flat * groups)[:, None]
    keys += (flat * capacity)[:, None]
    columns += (flat * capacity)[:, None]
    bound = tl.load(bounds + flat, inside, other=0.0)
    lanes = tl.arange(0, BLOCK)[None, :]
    alone = tl.zeros((ROWS,), tl.int32)
    unknown = tl.zeros((ROWS,), tl.int32)
    for start in range(0, groups, BLOCK):
        total = _above_in_groups(words, count, groups, start + lanes, inside[:, None])
        alone += tl.sum((total == 1).to(tl.int32), axis=1)
        unknown += tl.sum(tl.where(total > 1, total, 0), axis=1)
    above = alone + unknown
    listed = inside & (above <= capacity)
    tl.store(counts + 2 * flat, tl.where(listed, unknown, 0), inside)
    tl.store(counts + 2 * flat + 1, tl.maximum(above, top_k), inside)
    first_unknown = tl.zeros((ROWS,), tl.int32)
    first_known = unknown
    for start in range(0, groups, BLOCK):
        group = start + lanes
        total = _above_in_groups(words, count, groups, group, listed[:, None])
        single = (total == 1).to(tl.int32)
        shared = tl.where(total > 1, total, 0)
        slot = tl.where(
            total == 1,
            first_known[:, None] + tl.cumsum(single, axis=1) - 1,
            first_unknown[:, None] + tl.cumsum(shared, axis=1) - shared,
        )
        best = tl.load(maxima + group, total == 1, other=0)
        for word in range(count):
            left = _above(tl.load(words + (word * groups + group), total > 0, other=0))
            while tl.max(tl.max(left, axis=1), axis=0) > 0:
                bit = left & -left
                exponent = (bit.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
                member = word * MEMBERS.value + MEMBERS.value - 1 - exponent // 2
                column = start_of(member, group // N, shift, N) + group % N
                tl.store(columns + slot, column, left != 0)
                tl.store(keys + slot, best, (left != 0) & (total == 1))
                slot += (left != 0).to(tl.int32)
                left ^= bit
        first_known += tl.sum(single, axis=1)
        first_unknown += tl.sum(shared, axis=1)
    # What is at the bound, in the order of the columns.
    missing = tl.where(inside, top_k - above, 0)
    key = tl.broadcast_to(ordered(bound)[:, None], (ROWS, BLOCK))
    member = tl.full((), 0, tl.int32)
    start = tl.full((), 0, tl.int32)
    while (tl.max(missing, axis=0) > 0) & (member < members):
        place = start + lanes
        pair = _pair(words, groups, group_of(member, place, shift, N), member, (missing > 0)[:, None])
        column = member * groups + place
        tie = ((pair == 0) | (pair == 3)) & visible(skip, row[:, None], rows, column, candidates)
        before = tl.cumsum(tie.to(tl.int32), axis=1) - 1
        tie &= before < missing[:, None]
        slot = (top_k - missing)[:, None] + before
        tl.store(columns + slot, tl.broadcast_to(column, (ROWS, BLOCK)), tie)
        tl.store(keys + slot, key, tie)
        missing -= tl.sum(tie.to(tl.int32), axis=1)
        start += BLOCK
        member += tl.where(start >= groups, 1, 0)
        start = tl.where(start >= groups, 0, start)


@triton.jit
def _halve(keys, columns, count, top_k, BLOCK: tl.constexpr, ONE: tl.constexpr):
    """Leaves the κ best of a list in their order. Returns the key of the last of them."""
    tl.debug_barrier()
    found, limit = last_of(keys, columns, count, top_k, BLOCK, ONE)
    kept = tl.full((), 0, tl.int32)
    for at in range(0, tl.max(count, axis=0), BLOCK):
        key, column, take = best_of(keys, columns, count, at, found, limit, BLOCK)
        slot = kept + tl.cumsum(take.to(tl.int32), axis=1) - 1
        # Entries move down, to where all have been read.
        tl.debug_barrier()
        tl.store(keys + slot, key, take)
        tl.store(columns + slot, column, take)
        kept += tl.sum(tl.sum(take.to(tl.int32), axis=1), axis=0)
    tl.debug_barrier()
    return tl.max(found, axis=0)


@launched("rows")
@triton.jit
def _select_crowded(
    anchors, candidates, words, counts, keys, columns, shift, top_k, capacity,
    N: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) + tl.arange(0, 1)
    head = tl.program_id(1).to(tl.int64)
    flat = head * anchors.rows + row
    if tl.max(tl.load(counts + 2 * flat + 1), axis=0) > capacity:
        groups = N << shift
        bits = words + (flat * tl.cdiv(tl.cdiv(candidates.rows, groups), MEMBERS.value) * groups)[:, None]
        list_keys = keys + (flat * capacity)[:, None]
        list_columns = columns + (flat * capacity)[:, None]
        lanes = tl.arange(0, STRIDE.value)[None, :]
        used = tl.full((), 0, tl.int32)
        least = tl.full((), 0, tl.uint32)
        for begin in range(0, candidates.rows, STRIDE.value):
            column = begin + lanes
            member = begin // N >> shift
            above = _pair(bits, groups, group_of(member, column - member * groups, shift, N), member, lanes >= 0) == 2
            # What is NaN is beaten by nothing after it.
            if (tl.max(tl.max(above.to(tl.int32), axis=1), axis=0) > 0) & (least < NAN.value):
                s = tl.zeros(column.shape, tl.float32)
                place = tl.sum(tl.where(above, column, candidates.rows), axis=0)
                for part in range(0, candidates.width, DEPTH):
                    depth = part + tl.arange(0, DEPTH)
                    x = load_tile(anchors, head, row, depth).to(tl.float32)
                    y = load_tile(candidates, head, place, depth).to(tl.float32)
                    s += tl.sum(x * y, axis=1)[None, :]
                key = ordered(s)
                # Columns rise: what equals the κ-th so far comes after it.
                keep = above & (key > least)
                slot = used + tl.cumsum(keep.to(tl.int32), axis=1) - 1
                tl.store(list_keys + slot, key, keep)
                tl.store(list_columns + slot, column, keep)
                used += tl.sum(tl.sum(keep.to(tl.int32), axis=1), axis=0)
                if used > capacity - STRIDE.value:
                    least = _halve(list_keys, list_columns, tl.zeros((1,), tl.int32) + used, top_k, BLOCK, ONE)
                    used = top_k + used * 0
        tl.store(counts + 2 * flat + 1, tl.zeros((1,), tl.int32) + used)
