"""Rows of paired views, read once: unit rows in float32 and in the dtype of the products, in one launch.

Bound by memory. x / max(‖x‖, EPS) as `amcl_fast.rows.unit`, for rows of any finite size and any strides; the gradient
sums what comes back through every output in float32 and is rounded once.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import EPS, LONGEST
from .launch import blocks, launched, power_of_two
from .tile import load_tile, rows_of

# What `first` and `second` hold: nothing, the halves as given, or ready as in the tables.
NONE, RAW, READY = 0, 1, 2


class Made(NamedTuple):
    """Tables (C, P, d) and halves (C, N, d) of `rows_forward`, or the gradients of these; None: not there."""

    table: Tensor | None
    product: Tensor | None
    first: Tensor | None
    second: Tensor | None


@triton.jit
def _norms(x, head, row, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """What rows are scaled by before they are squared, 1 but for very long ones, and their norms then.

    Square root and reciprocal are those of `align`: the correctly rounded ones are calls, which take a stack.
    """
    lanes = tl.arange(0, BLOCK)
    square = tl.zeros((ROWS,), tl.float32)
    for start in range(0, x.width, BLOCK):
        value = load_tile(x, head, row, start + lanes).to(tl.float32)
        square += tl.sum(value * value, axis=1)
    shrink = tl.full((ROWS,), 1.0, tl.float32)
    if tl.max(square) > LONGEST * LONGEST:
        for start in range(0, x.width, BLOCK):
            value = load_tile(x, head, row, start + lanes).to(tl.float32)
            shrink = tl.minimum(shrink, LONGEST / tl.max(tl.abs(value), axis=1))
        square = tl.zeros((ROWS,), tl.float32)
        for start in range(0, x.width, BLOCK):
            value = load_tile(x, head, row, start + lanes).to(tl.float32) * shrink[:, None]
            square += tl.sum(value * value, axis=1)
    return shrink, tl.sqrt(square)


@triton.jit
def _write(
    x, half, before, table, product, factor,
    UNIT: tl.constexpr, TABLE: tl.constexpr, PRODUCT: tl.constexpr, HALVES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The rows of one half, `before` rows of the other standing before them in the tables."""
    head = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < x.rows)[:, None]
    in_half = (head.to(tl.int64) * x.rows + row)[:, None] * x.width
    in_table = (head.to(tl.int64) * x.rows * tl.num_programs(2) + before + row)[:, None] * x.width
    if UNIT:
        shrink, norm = _norms(x, head, row, ROWS, BLOCK)
        inverse = 1.0 / tl.maximum(norm, EPS)
    for start in range(0, x.width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = inside & (column < x.width)[None, :]
        raw = load_tile(x, head, row, column).to(tl.float32)
        value = raw
        if UNIT:
            value = raw * shrink[:, None] * inverse[:, None]
        value *= factor
        if TABLE:
            tl.store(table + in_table + column[None, :], value, mask)
        if PRODUCT:
            tl.store(product + in_table + column[None, :], value.to(product.dtype.element_ty), mask)
        if HALVES == 1:
            tl.store(half + in_half + column[None, :], raw, mask)
        if HALVES == 2:
            tl.store(half + in_half + column[None, :], value, mask)


@launched("rows", "column")
@triton.jit
def _rows_forward(
    x, y, table, product, first, second, skip, factor, column,
    UNIT: tl.constexpr, TABLE: tl.constexpr, PRODUCT: tl.constexpr, HALVES: tl.constexpr, SKIP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.program_id(2) == 0:
        _write(x, first, 0, table, product, factor, UNIT, TABLE, PRODUCT, HALVES, ROWS, BLOCK)
    else:
        _write(y, second, x.rows, table, product, factor, UNIT, TABLE, PRODUCT, HALVES, ROWS, BLOCK)
    if SKIP:  # noqa: SIM102 (decided when it is compiled)
        if tl.program_id(1) == 0:
            row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
            inside = row < x.rows
            half = tl.program_id(2)
            own = half * x.rows + row
            partner = (1 - half) * x.rows + row
            tl.store(skip + 2 * own, own.to(tl.int64) + column, inside)
            tl.store(skip + 2 * own + 1, partner.to(tl.int64) + column, inside)


@triton.jit
def _gradient(
    by_table, by_product, by_half, head, row, rows, before, column,
    TABLE: tl.constexpr, PRODUCT: tl.constexpr, READY: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of what comes back through the outputs that hold ready rows, zero past the `rows` of a half."""
    g = tl.zeros((ROWS, BLOCK), tl.float32)
    if TABLE:
        at = tl.where(row < rows, before + row, by_table.rows)
        g += load_tile(by_table, head, at, column).to(tl.float32)
    if PRODUCT:
        at = tl.where(row < rows, before + row, by_product.rows)
        g += load_tile(by_product, head, at, column).to(tl.float32)
    if READY:
        g += load_tile(by_half, head, row, column).to(tl.float32)
    return g


@triton.jit
def _differentiate(
    x, grad, by_half, before, by_table, by_product, factor,
    UNIT: tl.constexpr, TABLE: tl.constexpr, PRODUCT: tl.constexpr, HALVES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < x.rows)[:, None]
    lanes = tl.arange(0, BLOCK)
    if UNIT:
        shrink, norm = _norms(x, head, row, ROWS, BLOCK)
        inverse = 1.0 / tl.maximum(norm, EPS)
        along = tl.zeros((ROWS,), tl.float32)
        for start in range(0, x.width, BLOCK):
            column = start + lanes
            g = _gradient(
                by_table, by_product, by_half, head, row, x.rows, before, column,
                TABLE, PRODUCT, HALVES == 2, ROWS, BLOCK,
            )  # fmt: skip
            unit = load_tile(x, head, row, column).to(tl.float32) * shrink[:, None] * inverse[:, None]
            along += tl.sum(unit * g, axis=1)
        # Below EPS the norm is a constant, so nothing is projected out.
        along = tl.where(norm > EPS, along, 0.0)
    for start in range(0, x.width, BLOCK):
        column = start + lanes
        value = _gradient(
            by_table, by_product, by_half, head, row, x.rows, before, column,
            TABLE, PRODUCT, HALVES == 2, ROWS, BLOCK,
        )  # fmt: skip
        if UNIT:
            unit = load_tile(x, head, row, column).to(tl.float32) * shrink[:, None] * inverse[:, None]
            value = inverse[:, None] * (value - unit * along[:, None]) * shrink[:, None]
        value *= factor
        if HALVES == 1:
            value += load_tile(by_half, head, row, column).to(tl.float32)
        at = grad.base + head.to(tl.int64) * grad.head + row.to(tl.int64)[:, None] * grad.row
        at += column.to(tl.int64)[None, :] * grad.column
        tl.store(at, value.to(grad.base.dtype.element_ty), inside & (column < x.width)[None, :])


@launched("rows")
@triton.jit
def _rows_backward(
    x, y, grad_x, grad_y, by_table, by_product, by_first, by_second, factor,
    UNIT: tl.constexpr, TABLE: tl.constexpr, PRODUCT: tl.constexpr, HALVES: tl.constexpr,
    X: tl.constexpr, Y: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One half alone has a grid for itself.
    if X:  # noqa: SIM102 (decided when it is compiled)
        if tl.program_id(2) == 0:
            _differentiate(
                x, grad_x, by_first, 0, by_table, by_product, factor, UNIT, TABLE, PRODUCT, HALVES, ROWS, BLOCK
            )
    if Y:  # noqa: SIM102 (decided when it is compiled)
        if tl.program_id(2) == tl.num_programs(2) - 1:
            _differentiate(
                y, grad_y, by_second, x.rows, by_table, by_product, factor, UNIT, TABLE, PRODUCT, HALVES, ROWS, BLOCK
            )


def _tiling(width: int) -> dict[str, int]:
    """1024 elements of each tensor a program, half of `align`'s: there are up to five tensors."""
    block = max(16, min(1024, power_of_two(width)))
    # With a limit that none of them needs, ptxas does not spill two registers to fit one more block.
    return {"ROWS": 1024 // block, "BLOCK": block, "num_warps": 4, "maxnreg": 128}


def rows_forward(
    x: Tensor,
    y: Tensor | None,
    factor: float,
    unit: bool,
    table: bool,
    product: torch.dtype | None,
    halves: int,
    skip: int | None,
) -> tuple[Made, Tensor | None]:
    """Rows ready for the operators, of two halves or of one alone.

    Args:
        x, y: (C, N, d), any strides, float32 or half precision; y None: there is one half, of N rows.
        factor: of the rows in tables and halves that are ready.
        unit: divide rows by max(‖·‖, EPS); else they stay as they are.
        table: make the float32 table.
        product: dtype of the table that products read, None for none.
        halves: `NONE`, `RAW` or `READY`.
        skip: column of the first row of the table among all candidates; None makes no list.

    Returns:
        table: (C, P, d) float32, P = 2N rows, those of x before those of y (N if there is no y); product: the same in
        that dtype; first, second: (C, N, d) float32; and skip (P, 2) int64, the columns of a row itself and of its
        partner in the other half. What is not asked for is None.
    """
    heads, n, width = x.shape
    parts = 1 if y is None else 2
    whole, half = (heads, parts * n, width), (heads, n, width)
    made = Made(
        torch.empty(whole, dtype=torch.float32, device=x.device) if table else None,
        None if product is None else torch.empty(whole, dtype=product, device=x.device),
        torch.empty(half, dtype=torch.float32, device=x.device) if halves else None,
        torch.empty(half, dtype=torch.float32, device=x.device) if halves and y is not None else None,
    )
    skipped = None if skip is None else torch.empty(parts * n, 2, dtype=torch.int64, device=x.device)
    tiling = _tiling(width)
    _rows_forward[blocks(n, tiling["ROWS"]), heads, parts](
        rows_of(x),
        rows_of(x if y is None else y),
        *(x if tensor is None else tensor for tensor in (*made, skipped)),
        factor,
        0 if skip is None else skip,
        UNIT=unit,
        TABLE=table,
        PRODUCT=product is not None,
        HALVES=halves,
        SKIP=skip is not None,
        **tiling,
    )
    return made, skipped


def rows_backward(
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    x: Tensor,
    y: Tensor | None,
    grad_x: Tensor | None,
    grad_y: Tensor | None,
    factor: float,
    unit: bool,
    halves: int,
) -> None:
    """Writes the gradients of x and y into `grad_x` and `grad_y`, where they are given; both have any strides.

    Args:
        gradients: of what `rows_forward` made, None where there is none; of the halves both or neither.
        x, y, factor, unit, halves: as in `rows_forward`.
    """
    made = Made(*gradients)
    heads, n, width = x.shape
    tiling = _tiling(width)
    _rows_backward[blocks(n, tiling["ROWS"]), heads, (grad_x is not None) + (grad_y is not None)](
        rows_of(x),
        rows_of(x if y is None else y),
        *(rows_of(x if grad is None else grad) for grad in (grad_x, grad_y)),
        *(rows_of(x if tensor is None else tensor) for tensor in made),
        factor,
        UNIT=unit,
        TABLE=made.table is not None,
        PRODUCT=made.product is not None,
        HALVES=halves if made.first is not None else NONE,
        X=grad_x is not None,
        Y=grad_y is not None,
        **tiling,
    )
