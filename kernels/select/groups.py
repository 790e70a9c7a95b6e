"""How candidates are dealt into groups, and how the bits of a group's members lie in words."""

import triton
import triton.language as tl

# Candidates of a group in one word of bits: two bits each.
MEMBERS = tl.constexpr(16)


@triton.jit
def turned(member, shift):
    """By how many tiles the `member`-th G columns are turned before they are dealt into groups."""
    return member + (member >> shift) + (member >> shift >> shift)


@triton.jit
def start_of(member, tile, shift, N: tl.constexpr):
    """First of the N columns that are the `member`-th of the groups of a tile; G = N << shift."""
    return ((member << shift) + ((tile + turned(member, shift)) & ((1 << shift) - 1))) * N


@triton.jit
def group_of(member, place, shift, N: tl.constexpr):
    """Inverse of `start_of`: the group of the columns member·G + place."""
    return ((place // N - turned(member, shift)) & ((1 << shift) - 1)) * N + place % N


@triton.jit
def touched_members(skip, row, rows, tile, shift, N: tl.constexpr):
    """Bit m mod 64 is set if the m-th columns of the groups of a tile hold a skipped column of a row.

    Masks in the inner loop would cost as much as the rest of it; with this, only a few tiles pay for them.
    """
    bits = tl.zeros(row.shape, tl.int64)
    for i in tl.static_range(skip.each):
        column = tl.load(skip.base + row.to(tl.int64) * skip.each + i, row < rows, other=-1).to(tl.int32)
        member = column // N >> shift
        start = start_of(member, tile, shift, N)
        hit = (column >= start) & (column < start + N)
        bits |= tl.where(hit, 1, 0).to(tl.int64) << (member & 63).to(tl.int64)
    return tl.reduce_or(bits, axis=0)
