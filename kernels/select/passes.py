"""What forms similarities by tiles of products, all with the same bits: maxima, bits, and values of listed columns."""

import triton
import triton.language as tl

from ..launch import launched
from ..tile import is_touched, load_tile, products
from .groups import MEMBERS, start_of, touched_members
from .ranks import ordered

# The largest finite number, which stands for all above it.
LARGEST_FLOAT32 = tl.constexpr(3.4028234663852886e38)


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
    touched = touched_members(skip, row, anchors.rows, tile, shift, N)
    first = tl.broadcast_to(_skipped(skip, row, anchors.rows, 0)[:, None], (M, N))
    second = tl.broadcast_to(_skipped(skip, row, anchors.rows, 1)[:, None], (M, N))
    best = tl.full((M, N), float("-inf"), tl.float32)
    groups = N << shift
    for member in range(tl.cdiv(candidates.rows, groups)):
        start = start_of(member, tile, shift, N)
        column = start + lanes
        y = load_tile(candidates, head, column, depth)
        s = products(x, y, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
        if (start + N > candidates.rows) | is_touched(touched, member):
            s = _unless_skipped(s, skip, first, second, row, anchors.rows, column)
            s = tl.where((column < candidates.rows)[None, :], s, float("-inf"))
        best = tl.maximum(best, s, propagate_nan=tl.PropagateNan.ALL)
    at = (head * anchors.rows + row.to(tl.int64)) * groups + tile * N
    tl.store(maxima + at[:, None] + lanes[None, :], ordered(best), (row < anchors.rows)[:, None])


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
    touched = touched_members(skip, row, anchors.rows, tile, shift, N)
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
            start = start_of(member, tile, shift, N)
            column = start + lanes
            y = load_tile(candidates, head, column, depth)
            s = products(x, y, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
            if is_touched(touched, member):
                s = _unless_skipped(s, skip, first, second, row, anchors.rows, column)
            # NaN and ∞ are above any bound, and −0 is 0, whose differences have the signs of equal numbers. Signs, not
            # comparisons, which would hold a predicate for each similarity.
            most = tl.where(column < candidates.rows, LARGEST_FLOAT32.value, float("-inf"))[None, :]
            s = tl.where(s < most, s, most) + 0.0
            found = _pushed(_pushed(found, bound - s), s - bound)
        found <<= 2 * (MEMBERS.value - last + word * MEMBERS.value)
        at = (flat * count + word) * groups + tile * N
        tl.store(words + at[:, None] + lanes[None, :], found, (row < anchors.rows)[:, None])


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
            tl.store(keys + at, ordered(value), place < total)
