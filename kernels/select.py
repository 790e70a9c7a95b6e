"""The κ candidates of largest similarity, exactly, for every anchor (ties: lowest column).

1. `_select_maxima`: candidates are dealt into G ≥ 4κ groups; of each the largest similarity. The κ-th largest of the G
   maxima is a lower bound of the κ-th largest similarity, since κ groups hold a value at least as large.
2. `_select_bounds`: that bound, by bisection on the bits of the maxima until it is exact or few more than κ of them
   reach it.
3. `_select_bits`: forms the similarities again; two bits of each: does it reach the bound, is it above.
4. `_select_lists`: the columns above the bound, 1.15·κ a row on average, then as many at the bound as are missing.
5. `_select_values`: forms what the maxima do not tell, by the same products: a group's maximum is the value of its
   column above the bound if it has only one.
6. `_select_pick`: the κ best of the list, by bisection.

Similarities exist only as tiles, nothing is counted by atomics, and every list has a fixed order, so the result is a
function of the inputs alone.

**Equal similarities.** Let b be the bound, v the κ-th largest similarity, b ≤ v. If v = b, fewer than κ columns are
above b: all of them are taken, and of those at b, whose value is known, the lowest. If v > b, at least κ are above b
and none at b is taken. So what is at the bound need never be formed again or counted, however many there are: a row
of equal similarities has b = v, nothing above, and its κ columns among the first G + S. For that b must be exact
where many maxima are equal, and it is: bisection ends early only where few reach it.

**Crowded rows** have more columns above the bound than their list holds. Those lie in fewer than κ·17/16 of the G
groups, or the bisection had gone on: in about a quarter of the candidates at most, and ties at the bound are not
among them. `_select_crowded` forms them again, one row a program, in the order of the columns, keeps what beats the
κ-th best so far, and halves the list when it is full: work linear in their number. Which group a column goes into
turns with every G columns, so that no period of the candidates, as of the two views of an image, crowds a group.

**NaN** is above everything, one NaN equal to another, as a stable sort has it; so is ∞ but for NaN, and both have the
bit of what is above any bound. A bound of −∞ means that fewer than κ groups have anything to show; then −∞ itself,
which skipped columns have too, is at the bound, and what is taken from there is checked against them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .launch import blocks, launched, power_of_two
from .tile import is_touched, load_tile, products, rows_of, similarity_tiling, skip_of, visible

# Bytes of maxima, bits and lists at once; more anchors are done in turns.
WORKSPACE = 128 * 2**20
# Candidates of a group in one word of bits: two bits each.
MEMBERS = tl.constexpr(16)
# Columns formed at once for a crowded row.
STRIDE = tl.constexpr(32)
# The largest finite number, which stands for all above it, and the one before it.
LARGEST = tl.constexpr(3.4028234663852886e38)
BELOW_LARGEST = tl.constexpr(3.4028232635611926e38)
# The key of NaN.
NAN = tl.constexpr(0xFFC00000)


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
def _turned(member, shift):
    """By how many tiles the `member`-th G columns are turned before they are dealt into groups."""
    return member + (member >> shift) + (member >> shift >> shift)


@triton.jit
def _start(member, tile, shift, N: tl.constexpr):
    """First of the N columns that are the `member`-th of the groups of a tile; G = N << shift."""
    return ((member << shift) + ((tile + _turned(member, shift)) & ((1 << shift) - 1))) * N


@triton.jit
def _group(member, place, shift, N: tl.constexpr):
    """Inverse of `_start`: the group of the columns member·G + place."""
    return ((place // N - _turned(member, shift)) & ((1 << shift) - 1)) * N + place % N


@triton.jit
def _touched(skip, row, rows, tile, shift, N: tl.constexpr):
    """Bit m mod 64 is set if the m-th columns of the groups of a tile hold a skipped column of a row.

    Masks in the inner loop would cost as much as the rest of it; with this, only a few tiles pay for them.
    """
    bits = tl.zeros(row.shape, tl.int64)
    for i in tl.static_range(skip.each):
        column = tl.load(skip.base + row.to(tl.int64) * skip.each + i, row < rows, other=-1).to(tl.int32)
        member = column // N >> shift
        start = _start(member, tile, shift, N)
        hit = (column >= start) & (column < start + N)
        bits |= tl.where(hit, 1, 0).to(tl.int64) << (member & 63).to(tl.int64)
    return tl.reduce_or(bits, axis=0)


@triton.jit
def _skipped(skip, row, rows, i: tl.constexpr):
    """The i-th skipped column of each row; one that does not exist if there is none."""
    column = tl.full(row.shape, 0x7FFFFFFF, tl.int32)
    if i < skip.each:
        at = skip.base + row.to(tl.int64) * skip.each + i
        column = tl.load(at, row < rows, other=0x7FFFFFFF).to(tl.int32)
    return column


@triton.jit
def _unless_skipped(s, skip, first, second, row, rows, column):
    """`s`, −∞ where a column is skipped. Two skipped columns come in registers: loads cost barriers in the loop."""
    distance = tl.minimum((first ^ column[None, :]).to(tl.uint32), (second ^ column[None, :]).to(tl.uint32))
    for i in tl.static_range(2, skip.each):
        distance = tl.minimum(distance, (_skipped(skip, row, rows, i)[:, None] ^ column[None, :]).to(tl.uint32))
    return tl.where(distance == 0, float("-inf"), s)


@launched("rows")
@triton.jit
def _select_maxima(
    anchors, candidates, skip, maxima, shift,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    tile = tl.program_id(1)
    lanes = tl.arange(0, N)
    depth = tl.arange(0, DEPTH)
    x = load_tile(anchors, head, row, depth)
    touched = _touched(skip, row, anchors.rows, tile, shift, N)
    first = tl.broadcast_to(_skipped(skip, row, anchors.rows, 0)[:, None], (M, N))
    second = tl.broadcast_to(_skipped(skip, row, anchors.rows, 1)[:, None], (M, N))
    best = tl.full((M, N), float("-inf"), tl.float32)
    groups = N << shift
    for member in range(tl.cdiv(candidates.rows, groups)):
        start = _start(member, tile, shift, N)
        column = start + lanes
        y = load_tile(candidates, head, column, depth)
        s = products(x, y, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
        if (start + N > candidates.rows) | is_touched(touched, member):
            s = _unless_skipped(s, skip, first, second, row, anchors.rows, column)
            s = tl.where((column < candidates.rows)[None, :], s, float("-inf"))
        best = tl.maximum(best, s, propagate_nan=tl.PropagateNan.ALL)
    at = (head * anchors.rows + row.to(tl.int64)) * groups + tile * N
    tl.store(maxima + at[:, None] + lanes[None, :], _ordered(best), (row < anchors.rows)[:, None])


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
    value = _value(found)
    # The keys of NaN are those from −∞'s down, which no similarity has, and those above ∞'s.
    bound = tl.where(value < BELOW_LARGEST.value, value, BELOW_LARGEST.value)
    tl.store(bounds + row, tl.where(found > 0x007FFFFF, bound, float("-inf")), row < rows)


@triton.jit
def _pushed(word, x):
    """`word` with the sign of `x` as its new last bit."""
    return (word << 1) | (x.to(tl.uint32, bitcast=True) >> 31).to(tl.int32, bitcast=True)


@launched()  # another size compiles it anew: for any size its loop has 5 % more instructions
@triton.jit
def _select_bits(
    anchors, candidates, skip, bounds, words, shift,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    tile = tl.program_id(1)
    lanes = tl.arange(0, N)
    depth = tl.arange(0, DEPTH)
    x = load_tile(anchors, head, row, depth)
    touched = _touched(skip, row, anchors.rows, tile, shift, N)
    first = tl.broadcast_to(_skipped(skip, row, anchors.rows, 0)[:, None], (M, N))
    second = tl.broadcast_to(_skipped(skip, row, anchors.rows, 1)[:, None], (M, N))
    flat = head * anchors.rows + row.to(tl.int64)
    bound = tl.load(bounds + flat, row < anchors.rows, other=0.0)[:, None]
    groups = N << shift
    members = tl.cdiv(candidates.rows, groups)
    count = tl.cdiv(members, MEMBERS.value)
    for word in range(count):
        found = tl.zeros((M, N), tl.int32)
        last = tl.minimum(word * MEMBERS.value + MEMBERS.value, members)
        for member in range(word * MEMBERS.value, last):
            start = _start(member, tile, shift, N)
            column = start + lanes
            y = load_tile(candidates, head, column, depth)
            s = products(x, y, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
            if is_touched(touched, member):
                s = _unless_skipped(s, skip, first, second, row, anchors.rows, column)
            # NaN and ∞ are above any bound, and −0 is 0, whose differences have the signs of equal numbers. Signs, not
            # comparisons, which would hold a predicate for each similarity.
            most = tl.where(column < candidates.rows, LARGEST.value, float("-inf"))[None, :]
            s = tl.where(s < most, s, most) + 0.0
            found = _pushed(_pushed(found, bound - s), s - bound)
        found <<= 2 * (MEMBERS.value - last + word * MEMBERS.value)
        at = (flat * count + word) * groups + tile * N
        tl.store(words + at[:, None] + lanes[None, :], found, (row < anchors.rows)[:, None])


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
                column = _start(member, group // N, shift, N) + group % N
                tl.store(columns + slot, column, left != 0)
                tl.store(keys + slot, best, (left != 0) & (total == 1))
                slot += (left != 0).to(tl.int32)
                left ^= bit
        first_known += tl.sum(single, axis=1)
        first_unknown += tl.sum(shared, axis=1)
    # What is at the bound, in the order of the columns.
    missing = tl.where(inside, top_k - above, 0)
    key = tl.broadcast_to(_ordered(bound)[:, None], (ROWS, BLOCK))
    member = tl.full((), 0, tl.int32)
    start = tl.full((), 0, tl.int32)
    while (tl.max(missing, axis=0) > 0) & (member < members):
        place = start + lanes
        pair = _pair(words, groups, _group(member, place, shift, N), member, (missing > 0)[:, None])
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


@launched("rows")
@triton.jit
def _select_values(
    anchors, candidates, counts, keys, columns, capacity,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2).to(tl.int64)
    rows = tl.arange(0, M)
    row = tl.program_id(0) * M + rows
    flat = head * anchors.rows + tl.program_id(0) * M
    unknown = tl.load(counts + 2 * (flat + rows), row < anchors.rows, other=0)
    end = tl.cumsum(unknown, axis=0)[:, None]
    total = tl.sum(unknown, axis=0)
    lanes = tl.arange(0, N)
    depth = tl.arange(0, DEPTH)
    if tl.program_id(1) * N < total:
        x = load_tile(anchors, head, row, depth)
        for start in range(tl.program_id(1) * N, total, tl.num_programs(1) * N):
            # The unknown ones of all M rows, one after the other.
            place = start + lanes
            before = end <= place[None, :]
            owner = tl.sum(before.to(tl.int32), axis=0)
            at = (flat + owner) * capacity + place - tl.max(tl.where(before, end, 0), axis=0)
            column = tl.load(columns + at, place < total, other=candidates.rows)
            y = load_tile(candidates, head, column, depth)
            s = products(x, y, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
            value = tl.sum(tl.where(rows[:, None] == owner[None, :], s, 0.0), axis=0)
            tl.store(keys + at, _ordered(value), place < total)


@triton.jit
def _last(keys, columns, count, top_k, BLOCK: tl.constexpr, ONE: tl.constexpr):
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
def _best(keys, columns, count, at, found, limit, BLOCK: tl.constexpr):
    """Of BLOCK entries of each list from `at` on: key, column, whether it is among the κ."""
    lanes = at + tl.arange(0, BLOCK)[None, :]
    inside = lanes < count[:, None]
    key = tl.load(keys + lanes, inside, other=0)
    column = tl.load(columns + lanes, inside, other=0)
    take = inside & ((key > found[:, None]) | ((key == found[:, None]) & (column <= limit[:, None])))
    return key, column, take


@triton.jit
def _halve(keys, columns, count, top_k, BLOCK: tl.constexpr, ONE: tl.constexpr):
    """Leaves the κ best of a list in their order. Returns the key of the last of them."""
    tl.debug_barrier()
    found, limit = _last(keys, columns, count, top_k, BLOCK, ONE)
    kept = tl.full((), 0, tl.int32)
    for at in range(0, tl.max(count, axis=0), BLOCK):
        key, column, take = _best(keys, columns, count, at, found, limit, BLOCK)
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
            above = _pair(bits, groups, _group(member, column - member * groups, shift, N), member, lanes >= 0) == 2
            # What is NaN is beaten by nothing after it.
            if (tl.max(tl.max(above.to(tl.int32), axis=1), axis=0) > 0) & (least < NAN.value):
                s = tl.zeros(column.shape, tl.float32)
                place = tl.sum(tl.where(above, column, candidates.rows), axis=0)
                for part in range(0, candidates.width, DEPTH):
                    depth = part + tl.arange(0, DEPTH)
                    x = load_tile(anchors, head, row, depth).to(tl.float32)
                    y = load_tile(candidates, head, place, depth).to(tl.float32)
                    s += tl.sum(x * y, axis=1)[None, :]
                key = _ordered(s)
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
    found, limit = _last(keys, columns, count, top_k, BLOCK, ONE)
    out = head * out_head + row.to(tl.int64) * top_k
    for at in range(0, tl.max(count, axis=0), BLOCK):
        key, column, take = _best(keys, columns, count, at, found, limit, BLOCK)
        slot = out[:, None] + tl.cumsum(take.to(tl.int32), axis=1) - 1
        tl.store(similarities + slot, _value(key), take)
        tl.store(chosen + slot, column, take)
        out += tl.sum(take.to(tl.int32), axis=1)


def hardest(anchors: Tensor, candidates: Tensor, skip: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` candidates of largest inner product with each anchor.

    Args:
        anchors: (C, A, d), any strides.
        candidates: (C, B, d), any strides.
        skip: (A, S) int64, distinct columns that are not candidates of the anchor, or None.
        top_k: 1 ≤ κ ≤ B − S.

    Returns:
        similarities (C, A, κ) float32 and columns (C, A, κ) int32, in an order that is a function of the inputs.
    """
    heads, rows, width = anchors.shape
    device = anchors.device
    tiling = similarity_tiling(anchors, width)
    m, n = int(tiling["M"]), int(tiling["N"])
    table = rows_of(candidates)
    similarities = torch.empty(heads, rows, top_k, device=device)
    chosen = torch.empty(heads, rows, top_k, dtype=torch.int32, device=device)
    if not similarities.numel():
        return similarities, chosen
    groups = _groups(blocks(rows, m) * heads, table.rows, top_k, n)
    words = blocks(blocks(table.rows, groups), MEMBERS.value)
    # Twice what is expected, and so much more than κ that a crowded row gets on.
    capacity = max(64, power_of_two(2 * top_k))
    # int32 or as large: maxima, words, keys, columns, counts (2 of 4), bounds. By fours: all begin at 16 bytes.
    sizes = (groups, words * groups, capacity, capacity, 4, 4)
    turns = blocks(4 * heads * rows * sum(sizes), WORKSPACE)
    turn = blocks(blocks(rows, turns), m) * m
    workspace = torch.empty(heads * min(turn, rows) * sum(sizes), dtype=torch.int32, device=device)
    shift = (groups // n).bit_length() - 1
    # Four warps form 64 rows by the same instructions as 128 rows in the two passes, and half of what nobody asked for.
    few_rows = min(m, 64) if tiling["num_warps"] == 4 else m
    few = {**tiling, "M": few_rows}
    of_groups, of_lists, in_crowds = (
        _lanes(name, count, anchors) for name, count in (("bounds", groups), ("pick", capacity), ("crowded", capacity))
    )
    listing = _lanes("lists", groups, anchors)
    for start in range(0, rows, turn):
        part = rows_of(anchors[:, start : start + turn])
        size = part.rows
        hidden = skip_of(None if skip is None else skip[start : start + turn], chosen)
        maxima, bits, keys, columns, counts, bounds = workspace[: heads * size * sum(sizes)].split(
            [heads * size * each for each in sizes]
        )
        maxima, keys, bounds = maxima.view(torch.uint32), keys.view(torch.uint32), bounds.view(torch.float32)

        grid = (blocks(size, m), groups // n, heads)
        _select_maxima[grid](part, table, hidden, maxima, shift, **tiling)
        _select_bounds[blocks(heads * size, of_groups["ROWS"]),](
            maxima, bounds, heads * size, groups, top_k, **of_groups
        )
        _select_bits[grid](part, table, hidden, bounds, bits, shift, **tiling)
        _select_lists[blocks(size, listing["ROWS"]), heads](
            maxima, bounds, bits, hidden, counts, keys, columns, size, table.rows, shift, top_k, capacity,
            N=n, **listing,
        )  # fmt: skip
        # A fifth of the list is expected to be unknown.
        tiles = blocks(size, few_rows)
        parts = max(1, min(1024 // (tiles * heads), few_rows * top_k // (4 * n)))
        _select_values[tiles, parts, heads](part, table, counts, keys, columns, capacity, **few)
        _select_crowded[size, heads](
            part, table, bits, counts, keys, columns, shift, top_k, capacity, N=n, DEPTH=64, **in_crowds,
        )  # fmt: skip
        _select_pick[blocks(size, of_lists["ROWS"]), heads](
            counts, keys, columns, similarities[:, start:], chosen[:, start:], size, rows * top_k, top_k, capacity,
            **of_lists,
        )  # fmt: skip
    return similarities, chosen


def _lanes(kernel: str, count: int, x: Tensor) -> dict[str, int]:
    """Launch parameters of a kernel that looks at `count` entries of each row, a power of two."""
    # Entries that a warp holds at once, rows that a program has of short lists, registers that ptxas may use.
    each, together, registers = {
        "bounds": (1024, 2048, 168),
        "lists": (128, 256, 128),
        "crowded": (512, 1, 255),
        "pick": (512, 256, 168),
    }[kernel]
    warps = max(1, min(8, count // (512 if kernel == "pick" else 1024)))
    block = min(count, each * warps)
    default = {"BLOCK": block, "num_warps": warps, "maxnreg": registers}
    if kernel != "crowded":
        default["ROWS"] = max(1, together // block)
    found = tuning.chosen(f"select.{kernel}", f"{count} entries" if count <= 8192 else "more", default, x)
    return found if kernel == "lists" else {**found, "ONE": count <= found["BLOCK"]}


def _groups(tiles: int, columns: int, top_k: int, tile: int) -> int:
    """Number of groups: a power of two, at least 4κ, and enough to fill a GPU if there are few anchors."""
    # Eight tiles at least: columns turn among them.
    groups = max(8 * tile, power_of_two(4 * top_k))
    while groups < 8192 and tiles * (groups // tile) < 256:
        groups *= 2
    return min(groups, max(tile, power_of_two(columns)))
