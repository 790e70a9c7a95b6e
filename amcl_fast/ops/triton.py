"""Backend "triton": the kernels of `amcl_fast.kernels` as torch.library operators with autograd.

Signatures and mathematics are those of `amcl_fast.reference`. Inputs are float32, bfloat16 or float16; products
take them as they are, everything after is float32, and so are the returned rows. The kernels take CUDA tensors,
or CPU tensors under Triton's interpreter (TRITON_INTERPRET=1).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from ..kernels.align import align_backward, align_forward
from ..kernels.decorrelate import decorrelate as decorrelate_strips
from ..kernels.dense import dense_backward, dense_forward
from ..kernels.rows import NONE, RAW, READY, rows_backward, rows_forward
from ..kernels.select import hardest
from ..kernels.topk import topk_backward, topk_forward
from ..kernels.total import total_backward, total_forward
from ..reference import Stats
from ..rows import Prepared
from .registration import Operator
from .tensors import fake_gradients, masked, named, needed, once, stand_ins

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INTERPRETED = triton.knobs.runtime.interpret


def _operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """An `Operator`, on the GPU that holds the tensors: Triton launches on the current one."""

    def register(function: Callable[..., Any]) -> Operator:
        @functools.wraps(function)
        def on_its_device(first: Tensor, *rest: Any) -> Any:
            if first.is_cuda and first.get_device() == torch.cuda.current_device():
                return function(first, *rest)
            with torch.cuda.device_of(first):
                return function(first, *rest)

        return Operator(f"triton_{name}", on_its_device)

    return register


def contrast(
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    *,
    tau_min: float,
    tau_max: float,
    negatives: str,
    top_k: int | None,
    beta: float,
    extra: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """`amcl_fast.reference.contrast`.

    Raises:
        TypeError, ValueError: a dtype or device that the kernels do not take, or no negatives.
    """
    # One table has one gradient.
    one = candidates is anchors and phi_candidates is phi_anchors
    tensors = _checked(
        anchors=anchors,
        candidates=None if one else candidates,
        phi_anchors=phi_anchors,
        phi_candidates=None if one else phi_candidates,
        offset=offset,
        extra=None if negatives == "topk_mean" else extra,
    )
    count = candidates.shape[1] - (0 if skip is None else skip.shape[1])
    if count < 1:
        raise ValueError(f"candidates must hold at least one negative, got {candidates.shape[1]} rows less skip")
    kept = count if negatives == "softmax" or top_k is None else min(top_k, count)
    *tables, extra = tensors
    rows, stats, *_ = _contrast(*tables, skip, extra, kept, negatives == "topk_mean", tau_min, tau_max, beta)
    return rows, named(stats)


@_operator("contrast")
def _contrast(
    anchors: Tensor,
    candidates: Tensor | None,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    extra: Tensor | None,
    kept: int,
    mean: bool,
    tau_min: float,
    tau_max: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows, stats, and what the backward pass over `kept` chosen candidates needs; the shares alone if all are kept.
    Last ∂rows/∂extra.

    Without candidates the anchors are the candidates, and their gradients those of both.
    """
    every = _all_kept(anchors, candidates, skip, kept)
    if candidates is None:
        candidates, phi_candidates = anchors, phi_anchors
    if every:
        rows, stats, shares, extra_shares = dense_forward(
            anchors, candidates, phi_anchors, phi_candidates, offset, skip, mean, tau_min, tau_max, beta, extra
        )
        return rows, stats, rows.new_empty(0), shares, rows.new_empty(0), extra_shares
    similarities, chosen = hardest(anchors, candidates, skip, kept)
    rows, slope_s, slope_r, stats, extra_shares = topk_forward(
        phi_anchors, phi_candidates, offset, similarities, chosen, mean, tau_min, tau_max, beta, anchors.shape[2], extra
    )
    return rows, stats, chosen, slope_s, slope_r, extra_shares


@_contrast.register_fake
def _(
    anchors: Tensor,
    candidates: Tensor | None,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    extra: Tensor | None,
    kept: int,
    mean: bool,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    every = _all_kept(anchors, candidates, skip, kept)
    pairs = (0,) if every else (*anchors.shape[:2], kept)
    shares = (2, *anchors.shape[:2]) if every and not mean else pairs
    return (
        _float32(anchors, anchors.shape[:2]),
        _float32(anchors, (5,)),
        anchors.new_empty(pairs, dtype=torch.int32 if len(pairs) > 1 else torch.float32),
        _float32(anchors, shares),
        _float32(anchors, pairs if phi_anchors is not None else (0,)),
        _float32(anchors, anchors.shape[:2] if extra is not None else (0,)),
    )


@_operator("contrast_backward")
def _contrast_backward(
    gradient: Tensor,
    chosen: Tensor,
    slope_s: Tensor,
    slope_r: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    kept: int,
    mean: bool,
    tau_min: float,
    tau_max: float,
    beta: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four tables and of the offset."""
    wanted = (needs[0], needs[1], needs[2], needs[3], needs[4])
    if _all_kept(anchors, candidates, skip, kept):
        grads = dense_backward(
            gradient, slope_s, anchors, candidates, phi_anchors, phi_candidates, offset, skip, mean, tau_min, tau_max,
            beta, wanted,
        )  # fmt: skip
    else:
        grads = topk_backward(
            gradient, slope_s, slope_r, chosen, anchors, candidates, phi_anchors, phi_candidates, offset, wanted
        )
    a, b, c, d, e = stand_ins(anchors, masked(grads, needs))
    return a, b, c, d, e


@_contrast_backward.register_fake
def _(
    gradient: Tensor,
    chosen: Tensor,
    slope_s: Tensor,
    slope_r: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    kept: int,
    mean: bool,
    tau_min: float,
    tau_max: float,
    beta: float,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    return fake_gradients(anchors, (anchors, candidates, phi_anchors, phi_candidates, offset), needs)


def _contrast_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    *tensors, extra = inputs[:7]
    ctx.save_for_backward(*output[2:], *tensors)
    ctx.of_extra = None if extra is None else extra.dtype
    ctx.settings = inputs[7:]


@once
def _contrast_gradients(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return 12 * (None,)
    # Read once: checkpointing forms again what is asked for, and for one backward pass only once.
    chosen, slope_s, slope_r, extra_shares, *inputs = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:5])
    grads: list[Tensor | None] = [None for _ in needs]
    if any(needs):
        made = _contrast_backward(gradient, chosen, slope_s, slope_r, *inputs, *ctx.settings, needs)
        grads = masked(made, needs)
    of_extra = (gradient * extra_shares).to(ctx.of_extra) if ctx.needs_input_grad[6] else None
    return *grads, None, of_extra, *(None for _ in range(5))


_contrast.register_autograd(_contrast_gradients, setup_context=_contrast_setup)


def _all_kept(anchors: Tensor, candidates: Tensor | None, skip: Tensor | None, kept: int) -> bool:
    columns = (anchors if candidates is None else candidates).shape[1]
    return kept == columns - (0 if skip is None else skip.shape[1])


def align(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    *,
    tau_min: float,
    tau_max: float,
    weight: float,
    beta: float,
) -> tuple[Tensor, Stats]:
    """`amcl_fast.reference.align`."""
    tensors = _checked(x=x, y=y, phi_x=phi_x, phi_y=phi_y, offset=offset)
    rows, _, stats = _align(*tensors, tau_min, tau_max, weight, beta)
    return rows, named(stats)


@_operator("align")
def _align(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    tau_min: float,
    tau_max: float,
    weight: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return align_forward(x, y, phi_x, phi_y, offset, tau_min, tau_max, weight, beta)


@_align.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _float32(x, x.shape[:2]), _float32(x, (7, *x.shape[:2])), _float32(x, (5,))


@_operator("align_backward")
def _align_backward(
    gradient: Tensor,
    saved: Tensor,
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = align_backward(gradient, saved, x, y, phi_x, phi_y, (needs[0], needs[1], needs[2], needs[3]))
    a, b, c, d = stand_ins(x, grads)
    return a, b, c, d


@_align_backward.register_fake
def _(
    gradient: Tensor,
    saved: Tensor,
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    return fake_gradients(x, (x, y, phi_x, phi_y), needs)


def _align_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    x, y, phi_x, phi_y, offset, *_ = inputs
    ctx.save_for_backward(output[1], x, y, phi_x, phi_y, offset)


@once
def _align_gradients(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return 9 * (None,)
    saved, x, y, phi_x, phi_y, offset = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    grads = _align_backward(gradient, saved, x, y, phi_x, phi_y, needs)
    of_offset = (gradient * saved[4]).sum().to(offset.dtype) if ctx.needs_input_grad[4] else None
    return *masked(grads, needs), of_offset, None, None, None, None


_align.register_autograd(_align_gradients, setup_context=_align_setup)


def decorrelate(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    *,
    tau_min: float,
    tau_max: float,
    lambd: float,
    beta: float,
) -> tuple[Tensor, Stats, Stats]:
    """`amcl_fast.reference.decorrelate`."""
    tensors = _checked(False, x=x, y=y, phi_x=phi_x, phi_y=phi_y, offset=offset)
    heads, on, off, *_ = _decorrelate(*tensors, tau_min, tau_max, lambd, beta, needed(*tensors))
    return heads, named(on), named(off)


@_operator("decorrelate")
def _decorrelate(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    tau_min: float,
    tau_max: float,
    lambd: float,
    beta: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Heads, stats on and off the diagonal, and the gradients of each head that are needed, which a backward scales."""
    heads, on, off, *made = decorrelate_strips(
        x, y, phi_x, phi_y, offset, tau_min, tau_max, lambd, beta, (needs[0], needs[1], needs[2], needs[3], needs[4])
    )
    a, b, c, d, e = stand_ins(heads, made)
    return heads, on, off, a, b, c, d, e


@_decorrelate.register_fake
def _(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    tau_min: float,
    tau_max: float,
    lambd: float,
    beta: float,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    heads = _float32(x, x.shape[:1])
    like = x if x.dtype == torch.bfloat16 else heads
    made = (
        like.new_empty(t.shape) if t is not None and need else heads.new_empty(0)
        for t, need in zip((x, y, phi_x, phi_y), needs[:4], strict=True)
    )
    return heads, _float32(x, (5,)), _float32(x, (5,)), *made, heads.new_empty(heads.shape if needs[4] else 0)


def _decorrelate_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[3:])
    ctx.dtypes = [None if t is None else t.dtype for t in inputs[:5]]


@once
def _decorrelate_gradients(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return 10 * (None,)
    *made, scores = masked(ctx.saved_tensors, ctx.needs_input_grad[:5])
    scaled = [
        # One pass; bfloat16 was rounded when it was kept as well.
        None if t is None else torch.mul(t, gradient[:, None, None], out=t.new_empty(t.shape, dtype=dtype))
        for t, dtype in zip(made, ctx.dtypes, strict=False)
    ]
    of_offset = None if scores is None else -(scores * gradient).sum().to(ctx.dtypes[4])
    return *scaled, of_offset, *(None for _ in range(5))


_decorrelate.register_autograd(_decorrelate_gradients, setup_context=_decorrelate_setup)


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
    """`amcl_fast.rows.prepared`, all in one launch.

    Raises:
        TypeError, ValueError: a dtype or device that the kernels do not take.
    """
    _checked(x=x, y=y)
    # The product's table is the float32 one where that is its dtype.
    # The interpreter cuts a bfloat16 off where a GPU rounds it, so there torch makes it.
    late = _INTERPRETED and product == torch.bfloat16
    other = None if late or product == torch.float32 else product
    asked = table or product == torch.float32
    table = asked or late
    kind = {"none": NONE, "raw": RAW, "ready": READY}[halves]
    made = _prepared(x, y, factor, normalise, table, other, kind, -1 if skip is None else skip)
    there = (table, other is not None, kind != NONE, kind != NONE, skip is not None)
    whole, rounded, *rest = masked(made, there)
    if late and whole is not None:
        return Prepared(whole if asked else None, whole.bfloat16(), *rest)
    return Prepared(whole, whole if rounded is None else rounded, *rest)


@_operator("rows")
def _prepared(
    x: Tensor,
    y: Tensor | None,
    factor: float,
    unit: bool,
    table: bool,
    product: torch.dtype | None,
    halves: int,
    skip: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`kernels.rows.rows_forward`; without y the halves are those of x, of an even number of rows, if any are asked."""
    pair = _halves(x, y, halves)
    made, columns = rows_forward(*pair, factor, unit, table, product, halves, None if skip < 0 else skip)
    a, b, c, d, e = stand_ins(x, (*made, columns))
    return a, b, c, d, e


@_prepared.register_fake
def _(
    x: Tensor,
    y: Tensor | None,
    factor: float,
    unit: bool,
    table: bool,
    product: torch.dtype | None,
    halves: int,
    skip: int,
) -> tuple[Tensor, ...]:
    heads, rows, width = x.shape
    n = rows // 2 if y is None else rows
    rows = rows if y is None else 2 * rows
    half = (heads, n, width) if halves else (0,)
    return (
        _float32(x, (heads, rows, width)) if table else x.new_empty(0),
        x.new_empty(0) if product is None else x.new_empty((heads, rows, width), dtype=product),
        x.new_empty(half, dtype=torch.float32 if halves else x.dtype),
        x.new_empty(half, dtype=torch.float32 if halves else x.dtype),
        x.new_empty(0) if skip < 0 else x.new_empty((rows, 2), dtype=torch.int64),
    )


@_operator("rows_backward")
def _prepared_backward(
    x: Tensor,
    y: Tensor | None,
    table: Tensor | None,
    product: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
    factor: float,
    unit: bool,
    halves: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of x and y, laid out as they are."""
    grad_x = torch.empty_like(x) if needs[0] else None
    grad_y = torch.empty_like(y) if y is not None and needs[1] else None
    # One half's alone: zeros for the other, if anybody reads them.
    if first is not None and second is None:
        second = torch.zeros_like(first) if y is None or needs[1] else first
    elif second is not None and first is None:
        first = torch.zeros_like(second) if y is None or needs[0] else second
    pair, grads = _halves(x, y, halves), (grad_x, grad_y)
    if y is None and grad_x is not None:
        grads = _halves(grad_x, None, halves)
    rows_backward((table, product, first, second), *pair, *grads, factor, unit, halves)
    a, b = stand_ins(x, (grad_x, grad_y))
    return a, b


@_prepared_backward.register_fake
def _(
    x: Tensor,
    y: Tensor | None,
    table: Tensor | None,
    product: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
    factor: float,
    unit: bool,
    halves: int,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    return tuple(
        x.new_empty(0) if t is None or not need else torch.empty_like(t) for t, need in zip((x, y), needs, strict=True)
    )


def _prepared_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    x, y, ctx.factor, ctx.unit, table, product, ctx.halves, _ = inputs
    ctx.made = (table, product is not None, ctx.halves != NONE, ctx.halves != NONE)
    ctx.save_for_backward(x, y)


@once
def _prepared_gradients(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:2])
    given = masked(upstream[:4], ctx.made)
    if all(gradient is None for gradient in given):
        return 8 * (None,)
    grads = _prepared_backward(*ctx.saved_tensors, *given, ctx.factor, ctx.unit, ctx.halves, needs)
    return *masked(grads, needs), *(None for _ in range(6))


_prepared.register_autograd(_prepared_gradients, setup_context=_prepared_setup)


def _halves(x: Tensor, y: Tensor | None, halves: int) -> tuple[Tensor, Tensor | None]:
    """The halves that a launch reads: x and y, those of x alone, or x as one where nobody asks for halves."""
    if y is None and halves != NONE:
        first, second = x.chunk(2, dim=1)
        return first, second
    return x, y


def total(positive: Tensor, negative: Tensor, *, joined: bool, weight: float) -> Tensor:
    """Sum of a contrast's rows; `amcl_fast.kernels.total.total_forward`."""
    return _total(positive, negative, joined, weight)


@_operator("total")
def _total(positive: Tensor, negative: Tensor, joined: bool, weight: float) -> Tensor:
    return total_forward(positive, negative, joined, weight)


@_total.register_fake
def _(positive: Tensor, negative: Tensor, joined: bool, weight: float) -> Tensor:
    return positive.new_empty(())


@_operator("total_backward")
def _total_backward(
    gradient: Tensor, positive: Tensor, negative: Tensor, joined: bool, weight: float
) -> tuple[Tensor, Tensor]:
    return total_backward(gradient, positive, negative, joined, weight)


@_total_backward.register_fake
def _(gradient: Tensor, positive: Tensor, negative: Tensor, joined: bool, weight: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(positive), torch.empty_like(negative)


def _total_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    positive, negative, ctx.joined, ctx.weight = inputs
    ctx.save_for_backward(positive, negative)


@once
def _total_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    grads = _total_backward(gradient, *ctx.saved_tensors, ctx.joined, ctx.weight)
    return *masked(grads, ctx.needs_input_grad[:2]), None, None


_total.register_autograd(_total_gradients, setup_context=_total_setup)


def _checked(multiplied: bool = True, **tensors: Tensor | None) -> list[Tensor | None]:
    """The floating tensors of a call, after a check of what only this backend refuses.

    Args:
        multiplied: whether kernels form their products, and not the library.
        tensors: by name.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in given.items():
        if tensor.dtype not in _DTYPES:
            raise TypeError(
                f"{name} must be float32, bfloat16 or float16 for backend 'triton', got {tensor.dtype}; "
                "backend 'reference' takes float64"
            )
        if not tensor.is_cuda and not _INTERPRETED:
            raise ValueError(f"{name} must be on a CUDA device for backend 'triton', got {tensor.device}")
    # The interpreter computes bfloat16 products wrongly.
    if _INTERPRETED and multiplied and any(tensor.dtype == torch.bfloat16 for tensor in given.values()):
        return [None if tensor is None else tensor.float() for tensor in tensors.values()]
    return list(tensors.values())


def _float32(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _of_offset(score: Tensor, offset: Tensor | None) -> Tensor | None:
    """Gradient of the offset in r = φ(x)·φ(y) − offset, from the sum of those of r."""
    return None if offset is None else -score.to(offset.dtype)
