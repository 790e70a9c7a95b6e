"""The κ-th largest by bisection on the bits of keys: the bounds of the maxima, and what is picked of the lists."""

import triton
import triton.language as tl

from ..launch import launched

# The number before the largest finite one.
BELOW_LARGEST = tl.constexpr(3.4028232635611926e38)


@triton.jit
def ordered(s):
    """uint32 that compares as the float does; NaN, of either sign, is the largest, −0 equals 0."""
    bits = tl.where(s == s, tl.where(s == 0, 0.0, s), float("nan")).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def value_of(ordered):
    """Inverse of `ordered`."""
    bits = ordered.to(tl.int32, bitcast=True)
    return (bits ^ ((~bits >> 31) | -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _reaching(keys, count, trial, BLOCK: tl.constexpr):
    """How many of the first `count` keys of each row are at least `trial`."""
    reached = tl.zeros(count.shape, tl.int32)
    for start in range(0, tl.max(count, axis=0), BLOCK):
        lanes = start + tl.arange(0, BLOCK)[None, :]
        key = tl.load(keys + lanes, lanes < count[:, None], other=0)
        reached += tl.sum(((key >= trial[:, None]) & (lanes < count[:, None])).to(tl.int32), axis=1)
    return reached


@triton.jit
def _kth(keys, count, top_k, enough, BLOCK: tl.constexpr, ONE: tl.constexpr):
    """The κ-th largest of the first `count` keys of each row, or a smaller one that no more than `enough` reach.

    Args:
        keys: pointers to rows, (R, 1).
        count: (R,), 0 in rows that do not exist.
        ONE: BLOCK holds a row.

    Returns:
        the key and how many reach it, both (R,).
    """
    if ONE:
        lanes = tl.arange(0, BLOCK)[None, :]
        key = tl.load(keys + lanes, lanes < count[:, None], other=0)
    found = tl.zeros(count.shape, tl.uint32)
    reached = count
    i = 0
    while (i < 32) & (tl.max(reached, axis=0) > enough):
        trial = found | (tl.full(count.shape, 1, tl.uint32) << (31 - i))
        if ONE:  # noqa: SIM108 (a constant chooses which one is compiled)
            # What is outside is 0, below every trial.
            some = tl.sum((key >= trial[:, None]).to(tl.int32), axis=1)
        else:
            some = _reaching(keys, count, trial, BLOCK)
        better = (some >= top_k) & (reached > enough)
        found = tl.where(better, trial, found)
        reached = tl.where(better, some, reached)
        i += 1
    return found, reached


@launched("rows")
@triton.jit
def _select_bounds(maxima, bounds, rows, groups, top_k, ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # A few more than κ cost less than the steps that would exclude them.
    count = tl.where(row < rows, groups, 0)
    found, _ = _kth(maxima + (row * groups)[:, None], count, top_k, top_k + top_k // 16, BLOCK, ONE)
    value = value_of(found)
    # The keys of NaN are those from −∞'s down, which no similarity has, and those above ∞'s.
    bound = tl.where(value < BELOW_LARGEST.value, value, BELOW_LARGEST.value)
    tl.store(bounds + row, tl.where(found > 0x007FFFFF, bound, float("-inf")), row < rows)


@triton.jit
def last_of(keys, columns, count, top_k, BLOCK: tl.constexpr, ONE: tl.constexpr):
    """The κ-th of each list by (key, lowest column): its key and its column."""
    found, reached = _kth(keys, count, top_k, top_k, BLOCK, ONE)
    limit = tl.zeros(count.shape, tl.int32)
    if tl.max(reached, axis=0) > top_k:
        # More equal ones than fit: the largest column that is not too many of them.
        need = top_k - _reaching(keys, count, found + 1, BLOCK)
        for i in range(31):
            trial = limit | (1 << (30 - i))
            below = tl.zeros(count.shape, tl.int32)
            for start in range(0, tl.max(count, axis=0), BLOCK):
                lanes = start + tl.arange(0, BLOCK)[None, :]
                inside = lanes < count[:, None]
                key = tl.load(keys + lanes, inside, other=0)
                column = tl.load(columns + lanes, inside, other=0)
                tie = inside & (key == found[:, None]) & (column < trial[:, None])
                below += tl.sum(tie.to(tl.int32), axis=1)
            limit = tl.where(below < need, trial, limit)
    return found, tl.where(reached > top_k, limit, 0x7FFFFFFF)


@triton.jit
def best_of(keys, columns, count, at, found, limit, BLOCK: tl.constexpr):
    """Of BLOCK entries of each list from `at` on: key, column, whether it is among the κ."""
    lanes = at + tl.arange(0, BLOCK)[None, :]
    inside = lanes < count[:, None]
    key = tl.load(keys + lanes, inside, other=0)
    column = tl.load(columns + lanes, inside, other=0)
    take = inside & ((key > found[:, None]) | ((key == found[:, None]) & (column <= limit[:, None])))
    return key, column, take


@launched("rows", "out_head")
@triton.jit
def _select_pick(
    counts, keys, columns, similarities, chosen, rows, out_head, top_k, capacity,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    flat = head * rows + row
    keys += (flat * capacity)[:, None]
    columns += (flat * capacity)[:, None]
    count = tl.load(counts + 2 * flat + 1, row < rows, other=0)
    found, limit = last_of(keys, columns, count, top_k, BLOCK, ONE)
    out = head * out_head + row.to(tl.int64) * top_k
    for at in range(0, tl.max(count, axis=0), BLOCK):
        key, column, take = best_of(keys, columns, count, at, found, limit, BLOCK)
        slot = out[:, None] + tl.cumsum(take.to(tl.int32), axis=1) - 1
        tl.store(similarities + slot, value_of(key), take)
        tl.store(chosen + slot, column, take)
        out += tl.sum(take.to(tl.int32), axis=1)
