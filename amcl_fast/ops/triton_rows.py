"""What surrounds the operators on a GPU, each in one launch: the rows that they read, and the sum of what they return.

Signatures are those of `amcl_fast.ops`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.rows import NONE, RAW, READY, rows_backward, rows_forward
from ..kernels.total import total_backward, total_forward
from ..rows import Prepared
from .tensors import masked
from .triton import INTERPRETED, differentiable, exact, float32


def prepared(
    x: Tensor,
    y: Tensor | None,
    *,
    product: torch.dtype | None = None,
    factor: float = 1.0,
    normalise: bool = True,
    table: bool = False,
    halves: str = "none",
    skip: int | None = None,
) -> Prepared:
    """`amcl_fast.rows.prepared`, all in one launch."""
    # The product's table is the float32 one where that is its dtype.
    # The interpreter cuts a bfloat16 off where a GPU rounds it, so there torch makes it.
    late = INTERPRETED and product == torch.bfloat16
    other = None if late or product == torch.float32 else product
    asked = table or product == torch.float32
    table = asked or late
    kind = {"none": NONE, "raw": RAW, "ready": READY}[halves]
    made = _prepared(*exact(x, y), factor, normalise, table, other, kind, -1 if skip is None else skip)
    there = (table, other is not None, kind != NONE, kind != NONE, skip is not None)
    whole, rounded, *rest = masked(made, there)
    if late and whole is not None:
        return Prepared(whole if asked else None, whole.bfloat16(), *rest)
    return Prepared(whole, whole if rounded is None else rounded, *rest)


class _Prepared(NamedTuple):
    """Arguments of `kernels.rows.rows_forward`.

    Without y the halves are those of x, of an even number of rows, if any are asked; a negative skip is none.
    """

    x: Tensor
    y: Tensor | None
    factor: float
    unit: bool
    table: bool
    product: torch.dtype | None
    halves: int
    skip: int


def _prepared_forward(a: _Prepared) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    pair = _halves(a.x, a.y, a.halves)
    made, skip = rows_forward(*pair, a.factor, a.unit, a.table, a.product, a.halves, None if a.skip < 0 else a.skip)
    return *made, skip


def _prepared_fake(a: _Prepared) -> list[Tensor | None]:
    heads, rows, width = a.x.shape
    n = rows // 2 if a.y is None else rows
    rows = rows if a.y is None else 2 * rows
    first, second = (float32(a.x, (heads, n, width)) if a.halves else None for _ in range(2))
    return [
        float32(a.x, (heads, rows, width)) if a.table else None,
        None if a.product is None else a.x.new_empty((heads, rows, width), dtype=a.product),
        first,
        second,
        None if a.skip < 0 else a.x.new_empty((rows, 2), dtype=torch.int64),
    ]


def _prepared_backward(
    a: _Prepared,
    needs: list[bool],
    table: Tensor | None,
    product: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of x and y, laid out as they are."""
    grad_x = torch.empty_like(a.x) if needs[0] else None
    grad_y = torch.empty_like(a.y) if a.y is not None and needs[1] else None
    # One half's alone: zeros for the other, if anybody reads them.
    if first is not None and second is None:
        second = torch.zeros_like(first) if a.y is None or needs[1] else first
    elif second is not None and first is None:
        first = torch.zeros_like(second) if a.y is None or needs[0] else second
    pair, grads = _halves(a.x, a.y, a.halves), (grad_x, grad_y)
    if a.y is None and grad_x is not None:
        grads = _halves(grad_x, None, a.halves)
    rows_backward((table, product, first, second), *pair, *grads, a.factor, a.unit, a.halves)
    return [grad_x, grad_y]


_prepared = differentiable(
    "triton_rows",
    _Prepared,
    _prepared_forward,
    _prepared_fake,
    _prepared_backward,
    saves=(),
    gradients=4,
    layout=torch.empty_like,
)


def _halves(x: Tensor, y: Tensor | None, halves: int) -> tuple[Tensor, Tensor | None]:
    """The halves that a launch reads: x and y, those of x alone, or x as one where nobody asks for halves."""
    if y is None and halves != NONE:
        first, second = x.chunk(2, dim=1)
        return first, second
    return x, y


def total(positive: Tensor, negative: Tensor, *, joined: bool, weight: float) -> Tensor:
    """Sum of a contrast's rows; `amcl_fast.kernels.total.total_forward`."""
    result: Tensor = _total(positive, negative, joined, weight)
    return result


class _Total(NamedTuple):
    positive: Tensor
    negative: Tensor
    joined: bool
    weight: float


def _total_forward(a: _Total) -> tuple[Tensor]:
    return (total_forward(*a),)


def _total_fake(a: _Total) -> list[Tensor]:
    return [a.positive.new_empty(())]


def _total_backward(a: _Total, needs: list[bool], gradient: Tensor) -> tuple[Tensor, Tensor]:
    return total_backward(gradient, *a)


_total = differentiable("triton_total", _Total, _total_forward, _total_fake, _total_backward, saves=())
