"""A tile of similarities, and which of its columns are no negatives; shared by the contrast kernels."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common, tuning
from .launch import Rows


class Skip(NamedTuple):
    """Skipped columns, (rows, each) int64 and contiguous; `each` is a constant of the kernel, 0 if none."""

    base: Tensor
    each: tl.constexpr


def rows_of(x: Tensor) -> Rows:
    """`x` (C, rows, width) as a kernel argument."""
    return Rows(x, *x.stride(), *x.shape[1:])


def skip_of(skip: Tensor | None, like: Tensor) -> Skip:
    """`skip` as a kernel argument; None skips nothing (`like` stands in for the pointer)."""
    return Skip(like, tl.constexpr(0)) if skip is None else Skip(skip.contiguous(), tl.constexpr(skip.shape[1]))


@triton.jit
def load_tile(x, head, row, column):
    """x[head, row, column], zero outside. Offsets are int64: a queue may exceed 2³¹ elements."""
    mask = (row < x.rows)[:, None] & (column < x.width)[None, :]
    offset = row.to(tl.int64)[:, None] * x.row + column.to(tl.int64)[None, :] * x.column
    return tl.load(x.base + head.to(tl.int64) * x.head + offset, mask, other=0.0)


@triton.jit
def streamed_products(x, x_row, y, y_row, head, DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """x[x_row]·y[y_row]ᵀ in float32, both read DEPTH columns at a time."""
    depth = tl.arange(0, DEPTH)
    result = tl.zeros((x_row.shape[0], y_row.shape[0]), tl.float32)
    for start in range(0, x.width, DEPTH):
        x_part = load_tile(x, head, x_row, start + depth)
        y_part = load_tile(y, head, y_row, start + depth)
        result = tl.dot(x_part, tl.trans(y_part), result, input_precision=PRECISION, out_dtype=tl.float32)
    return result


@triton.jit
def products(
    x_tile, y_tile, x, x_row, y, y_row, head, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr
):
    """x[x_row]·y[y_row]ᵀ in float32.

    WHOLE: the width fits in DEPTH, and `x_tile` and `y_tile` hold these rows. Two kernels with equal tile shape, DEPTH
    and PRECISION get the same bits.
    """
    if WHOLE:
        result = tl.dot(x_tile, tl.trans(y_tile), input_precision=PRECISION, out_dtype=tl.float32)
    else:
        result = streamed_products(x, x_row, y, y_row, head, DEPTH, PRECISION)
    return result


@triton.jit
def touched_tiles(skip, row, rows, first, step, WIDTH: tl.constexpr):
    """Bit t mod 64 is set if tile t, the WIDTH columns from first + t·step on, holds a skipped column of a row.

    Masks in the inner loop would cost as much as the rest of it; with this, only a few tiles pay for them.
    """
    bits = tl.zeros(row.shape, tl.int64)
    for i in tl.static_range(skip.each):
        distance = tl.load(skip.base + row.to(tl.int64) * skip.each + i, row < rows, other=0) - first
        tile = distance // step
        hit = (row < rows) & (distance >= 0) & (distance - tile * step < WIDTH)
        bits |= tl.where(hit, 1, 0).to(tl.int64) << (tile & 63)
    return tl.reduce_or(bits, axis=0)


@triton.jit
def is_touched(touched, tile):
    """Whether `touched_tiles` marked this tile."""
    return ((touched >> (tile % 64)) & 1) != 0


@triton.jit
def visible(skip, anchor, anchors, column, columns):
    """Whether pairs (anchor, column), two index tiles that broadcast, are negatives: inside and not skipped."""
    result = (anchor < anchors) & (column < columns)
    for i in tl.static_range(skip.each):
        skipped = tl.load(skip.base + anchor.to(tl.int64) * skip.each + i, anchor < anchors, other=-1)
        result &= skipped.to(tl.int32) != column
    return result


def similarity_tiling(x: Tensor, width: int) -> dict[str, int | bool | str]:
    """Launch parameters of kernels that need tiles of products and nothing else, for anchors `x` (C, A, d)."""
    depth = 128 if 64 < width <= 128 else 64
    whole = width <= 128
    if x.dtype == torch.float32:
        shape = {"M": 64, "N": 64, "DEPTH": 32, "WHOLE": False, "num_warps": 4, "num_stages": 3}
        # mma.sync holds both halves of each operand in registers.
        if common.capability(x)[0] == 8:
            shape |= {"DEPTH": 16, "num_warps": 8}
    else:
        shape = {"M": 128, "N": 64, "DEPTH": depth if whole else 32, "WHOLE": whole, "num_warps": 8, "num_stages": 3}
        shape["maxnreg"] = 255
        # Two blocks on a multiprocessor then, in both passes: one multiplies while the other looks at its results.
        if whole and common.capability(x) == (9, 0):
            shape["num_warps"] = 4
    wide = f"d≤{depth}" if whole else "d>128"
    blocks = "full" if x.shape[0] * x.shape[1] >= 128 * 128 else "few"
    shape = tuning.chosen("select.similarities", tuning.key(x, wide, blocks), shape, x)
    return {**shape, "PRECISION": common.dot_precision(x)}
