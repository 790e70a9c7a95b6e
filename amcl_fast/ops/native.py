"""The operators on the CPU by the C++ engine `amcl_fast._native`; meaning and signatures as in `reference`.

Exact, with the reference's tie rule, and with the same bits for any number of threads: matrix products are
made block by block, one thread each, by the BLAS that torch carries, and every sum has one order. Nothing of
the size anchors × candidates is stored. float32 and float64; strides are free (rows that BLAS cannot read are
copied). Each operator is one or two of torch.library, with fake tensors and autograd.
"""

import ctypes
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..reference import NEGATIVES, Stats
from .tensors import fake_gradients, masked, named, needed, once, stand_ins

_DTYPES = (torch.float32, torch.float64)


def _connect_blas() -> None:
    """Gives the engine torch's sgemm and dgemm; without them it multiplies by plain loops."""
    prefix, suffix = {"darwin": ("lib", "dylib"), "win32": ("", "dll")}.get(sys.platform, ("lib", "so"))
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"{prefix}torch_cpu.{suffix}"))
        products = library.sgemm_, library.dgemm_
    except (OSError, AttributeError):
        return
    set_threads = getattr(library, "MKL_Set_Num_Threads_Local", 0)
    _native.use_blas(*(ctypes.cast(f, ctypes.c_void_p).value or 0 for f in (*products, set_threads)))


_connect_blas()


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
    """`amcl_fast.reference.contrast` in C++.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape; the message names it.
    """
    _check_floating(
        anchors=anchors,
        candidates=candidates,
        phi_anchors=phi_anchors,
        phi_candidates=phi_candidates,
        offset=offset,
        extra=extra,
    )
    heads, rows, width = _expect("anchors", anchors, (None, None, None))
    columns = _expect("candidates", candidates, (heads, None, width))[1]
    _expect_phi("phi_anchors", phi_anchors, (heads, rows), "phi_candidates", phi_candidates, (heads, columns))
    temperature = _temperature(tau_min, tau_max, beta, offset, adaptive=phi_anchors is not None)
    if extra is not None:
        _expect("extra", extra, (heads, rows))
        if negatives == "topk_mean":
            raise ValueError("extra joins a log-sum-exp: it takes 'topk_softmax' or 'softmax', not 'topk_mean'")
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives must be one of {NEGATIVES}, got {negatives!r}")
    skipped = 0
    if skip is not None:
        if skip.dtype != torch.int64 or skip.device.type != "cpu":
            raise TypeError(f"skip must be an int64 tensor on the CPU, got {skip.dtype} on {skip.device}")
        skipped = _expect("skip", skip, (rows, None))[1]
    if columns <= skipped:
        raise ValueError(f"candidates must hold a negative, got {columns} columns, {skipped} of them skipped")
    available = columns - skipped
    if negatives == "softmax":
        top_k = available
    elif top_k is None or top_k < 1:
        raise ValueError(f"top_k must be at least 1 for {negatives!r}, got {top_k}")
    top_k = min(top_k, available)
    tensors = (anchors, candidates, phi_anchors, phi_candidates, None if phi_anchors is None else offset)
    if negatives == "topk_mean" or top_k < available:
        keep = any(needed(*tensors))
        values, summary, *_ = _contrast_topk(*tensors, skip, negatives == "topk_mean", top_k, *temperature, keep)
        if extra is not None:
            values = torch.logaddexp(values, extra)
    else:
        values, summary, *_ = _contrast_softmax(*tensors, skip, extra, *temperature, needed(*tensors))
    return values, named(summary)


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
    """`amcl_fast.reference.align` in C++.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape; the message names it.
    """
    _check_floating(x=x, y=y, phi_x=phi_x, phi_y=phi_y, offset=offset)
    heads, rows, width = _expect("x", x, (None, None, None))
    _expect("y", y, (heads, rows, width))
    _expect_phi("phi_x", phi_x, (heads, rows), "phi_y", phi_y, (heads, rows))
    temperature = _temperature(tau_min, tau_max, beta, offset, adaptive=phi_x is not None)
    values, summary, _ = _align(x, y, phi_x, phi_y, None if phi_x is None else offset, weight, *temperature)
    return values, named(summary)


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
    """`amcl_fast.reference.decorrelate` in C++.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape; the message names it.
    """
    _check_floating(x=x, y=y, phi_x=phi_x, phi_y=phi_y, offset=offset)
    heads, channels, batch = _expect("x", x, (None, None, None))
    _expect("y", y, (heads, channels, batch))
    _expect_phi("phi_x", phi_x, (heads, channels), "phi_y", phi_y, (heads, channels))
    temperature = _temperature(tau_min, tau_max, beta, offset, adaptive=phi_x is not None)
    tensors = (x, y, phi_x, phi_y, None if phi_x is None else offset)
    values, on, off, *_ = _decorrelate(*tensors, lambd, *temperature, needed(*tensors))
    return values, named(on), named(off)


def _temperature(
    tau_min: float, tau_max: float, beta: float, offset: Tensor | None, adaptive: bool
) -> tuple[float, float, float]:
    """low, span and beta of τ = low + span·σ(−(r − offset)); a constant τ has span = beta = 0."""
    # Not math.isfinite: torch.compile takes these for symbols with dynamic=True.
    if not 0 < tau_min <= tau_max < math.inf:
        raise ValueError(f"0 < tau_min <= tau_max must hold, got tau_min={tau_min} and tau_max={tau_max}")
    if not abs(beta) < math.inf:
        raise ValueError(f"beta must be finite, got {beta}")
    if offset is not None and offset.dim() != 0:
        raise ValueError(f"offset must be a 0-dim tensor, got the shape {tuple(offset.shape)}")
    return (tau_min, tau_max - tau_min, beta) if adaptive else (tau_min, 0.0, 0.0)


class _Outputs:
    """Memory for the gradients by x, y, φx, φy and the offset, those that are wanted."""

    def __init__(self, inputs: Sequence[Tensor | None], wanted: Sequence[bool]) -> None:
        # empty(shape) and not empty_like: an input's strides may overlap or have gaps.
        self.rows = [
            torch.empty(t.shape, dtype=t.dtype) if t is not None and want else None
            for t, want in zip(inputs, wanted[:4], strict=True)
        ]
        assert inputs[0] is not None
        self.offset = torch.empty(inputs[0].shape[0], dtype=torch.float64) if wanted[4] else None

    def arguments(self) -> tuple[list[tuple[int, int, int] | None], int]:
        return [_strided(t) for t in self.rows], _address(self.offset)

    def by_head(self) -> list[Tensor | None]:
        """The gradients, that of the offset still one float64 a head."""
        return [*self.rows, self.offset]

    def gradients(self, dtype: torch.dtype) -> list[Tensor | None]:
        return [*self.rows, None if self.offset is None else self.offset.sum().to(dtype)]


def _fake_by_head(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor]:
    """`_Outputs.by_head` after `stand_ins`, as fake tensors."""
    x = tensors[0]
    assert x is not None
    by_offset = x.new_empty(x.shape[0], dtype=torch.float64) if wanted[4] else x.new_empty(0)
    return [*fake_gradients(x, tensors[:4], wanted[:4]), by_offset]


def _scaled(gradients: Sequence[Tensor | None], by_head: Tensor) -> list[Tensor | None]:
    """Gradients of the heads' values (`_Outputs.by_head`), times the upstream gradient of each head."""
    *rows, offset = gradients
    scaled = [None if t is None else t * by_head[:, None, None] for t in rows]
    return [*scaled, None if offset is None else (offset * by_head).sum().to(by_head.dtype)]


def _contrast_arguments(
    inputs: Sequence[Tensor | None],
    offset: Tensor | None,
    skip: Tensor | None,
    form: _native.Form,
    top_k: int,
    temperature: tuple[float, float, float],
) -> _native.Contrast:
    a, b, phi_a, _ = inputs
    assert a is not None and b is not None
    return _native.Contrast(
        (*a.shape[:2], b.shape[1], a.shape[2], _width(phi_a), top_k, _width(skip)),
        form,
        _with_offset(temperature, offset),
        [_strided(t) for t in inputs],
        _address(skip),
        torch.get_num_threads(),
    )


@torch.library.custom_op("amcl_fast::native_contrast_topk", mutates_args=())
def _contrast_topk(
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    mean: bool,
    top_k: int,
    low: float,
    span: float,
    beta: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values, statistics and, if `keep`, each row's k columns and its derivatives by their s and r."""
    inputs = [_readable(t) for t in (anchors, candidates, phi_anchors, phi_candidates)]
    skip = None if skip is None else skip.contiguous()
    form = _native.Form.topk_mean if mean else _native.Form.topk_softmax
    values = anchors.new_empty(anchors.shape[:2])
    columns = ds = dr = None
    if keep:
        columns = torch.empty(*values.shape, top_k, dtype=torch.int32)
        ds = values.new_empty(columns.shape)
        dr = None if phi_anchors is None else torch.empty_like(ds)
    sums = _native.contrast_topk_forward(
        _is_double(anchors),
        _contrast_arguments(inputs, offset, skip, form, top_k, (low, span, beta)),
        _address(values),
        _address(columns),
        _address(ds),
        _address(dr),
    )
    a, b, c = stand_ins(values, (columns, ds, dr))
    return values, _summary(sums, low, values), a, b, c


@_contrast_topk.register_fake
def _(
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    mean: bool,
    top_k: int,
    low: float,
    span: float,
    beta: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    pairs = (*anchors.shape[:2], top_k) if keep else (0,)
    return (
        anchors.new_empty(anchors.shape[:2]),
        anchors.new_empty(5),
        anchors.new_empty(pairs, dtype=torch.int32 if keep else anchors.dtype),
        anchors.new_empty(pairs),
        anchors.new_empty(pairs if phi_anchors is not None else (0,)),
    )


@torch.library.custom_op("amcl_fast::native_contrast_topk_backward", mutates_args=())
def _contrast_topk_backward(
    upstream: Tensor,
    columns: Tensor,
    ds: Tensor,
    dr: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    mean: bool,
    top_k: int,
    low: float,
    span: float,
    beta: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four tables and of the offset."""
    inputs = [_readable(t) for t in (anchors, candidates, phi_anchors, phi_candidates)]
    skip = None if skip is None else skip.contiguous()
    form = _native.Form.topk_mean if mean else _native.Form.topk_softmax
    upstream = upstream.contiguous()
    outputs = _Outputs(inputs, needs)
    _native.contrast_topk_backward(
        _is_double(upstream),
        _contrast_arguments(inputs, offset, skip, form, top_k, (low, span, beta)),
        _address(upstream),
        _address(columns),
        _address(ds),
        _address(dr if phi_anchors is not None else None),
        *outputs.arguments(),
    )
    a, b, c, d, e = stand_ins(upstream, outputs.gradients(upstream.dtype))
    return a, b, c, d, e


@_contrast_topk_backward.register_fake
def _(upstream: Tensor, columns: Tensor, ds: Tensor, dr: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients(upstream, arguments[:5], arguments[-1])


def _contrast_topk_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:], *inputs[:6])
    ctx.settings = inputs[6:11]


@once
def _contrast_topk_gradients(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return 12 * (None,)
    needs = list(ctx.needs_input_grad[:5])
    grads = _contrast_topk_backward(upstream, *ctx.saved_tensors, *ctx.settings, needs)
    return *masked(grads, needs), *(None for _ in range(7))


_contrast_topk.register_autograd(_contrast_topk_gradients, setup_context=_contrast_topk_setup)


@torch.library.custom_op("amcl_fast::native_contrast_softmax", mutates_args=())
def _contrast_softmax(
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    extra: Tensor | None,
    low: float,
    span: float,
    beta: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values, statistics and the wanted gradients of Σ values, made while each row's S and R are at hand.

    A loss that averages over anchors gives all of a head one upstream gradient, so those gradients need only be
    scaled. Any other upstream gradient costs a second pass.
    """
    values = anchors.new_empty(anchors.shape[:2])
    tensors = (anchors, candidates, phi_anchors, phi_candidates)
    sums, outputs = _softmax_pass(tensors, offset, skip, extra, (low, span, beta), None, values, wanted)
    a, b, c, d, e = stand_ins(values, outputs.by_head())
    return values, _summary(sums, low, values), a, b, c, d, e


@_contrast_softmax.register_fake
def _(
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    extra: Tensor | None,
    low: float,
    span: float,
    beta: float,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    made = _fake_by_head((anchors, candidates, phi_anchors, phi_candidates, offset), wanted)
    return anchors.new_empty(anchors.shape[:2]), anchors.new_empty(5), *made


@torch.library.custom_op("amcl_fast::native_contrast_softmax_backward", mutates_args=())
def _contrast_softmax_backward(
    upstream: Tensor,
    by_x: Tensor,
    by_y: Tensor,
    by_phi_x: Tensor,
    by_phi_y: Tensor,
    by_offset: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    extra: Tensor | None,
    low: float,
    span: float,
    beta: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four tables and of the offset, from those of Σ values."""
    made = masked((by_x, by_y, by_phi_x, by_phi_y, by_offset), needs)
    by_head = upstream[:, :1]
    if torch.equal(upstream, by_head.expand_as(upstream)):
        grads = _scaled(made, by_head[:, 0])
    else:
        # What belongs to an anchor is scaled with it; what sums over anchors is made anew.
        upstream = upstream.contiguous()
        tensors = (anchors, candidates, phi_anchors, phi_candidates)
        wanted = [False, needs[1], False, *needs[3:]]
        values = torch.empty_like(upstream)
        _, outputs = _softmax_pass(tensors, offset, skip, extra, (low, span, beta), upstream, values, wanted)
        grads = outputs.gradients(upstream.dtype)
        for i in (0, 2):
            table = made[i]
            grads[i] = None if table is None else table * upstream[..., None]
    a, b, c, d, e = stand_ins(upstream, grads)
    return a, b, c, d, e


@_contrast_softmax_backward.register_fake
def _(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients(upstream, arguments[5:10], arguments[-1])


def _softmax_pass(
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    offset: Tensor | None,
    skip: Tensor | None,
    extra: Tensor | None,
    temperature: tuple[float, float, float],
    upstream: Tensor | None,
    values: Tensor,
    wanted: list[bool],
) -> tuple[tuple[float, ...], _Outputs]:
    """Fills `values`; returns the sums for statistics and the gradients of Σ upstream·values (None: of Σ values)."""
    inputs = [_readable(t) for t in tensors]
    skip, extra = (None if t is None else t.contiguous() for t in (skip, extra))
    count = tensors[1].shape[1] - _width(skip)
    outputs = _Outputs(inputs, wanted)
    sums = _native.contrast_softmax(
        _is_double(values),
        _contrast_arguments(inputs, offset, skip, _native.Form.softmax, count, temperature),
        _address(upstream),
        _address(extra),
        _address(values),
        *outputs.arguments(),
    )
    return sums, outputs


def _contrast_softmax_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], *output[2:], *inputs[:7])
    ctx.settings = inputs[7:10]


@once
def _contrast_softmax_gradients(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return 11 * (None,)
    values, *saved = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:5])
    grads = _contrast_softmax_backward(upstream, *saved, *ctx.settings, needs)
    by_extra = upstream * (saved[-1] - values).exp() if ctx.needs_input_grad[6] else None
    return *masked(grads, needs), None, by_extra, None, None, None, None


_contrast_softmax.register_autograd(_contrast_softmax_gradients, setup_context=_contrast_softmax_setup)


def _align_arguments(
    inputs: Sequence[Tensor | None], offset: Tensor | None, weight: float, temperature: tuple[float, float, float]
) -> _native.Align:
    x, _, phi_x, _ = inputs
    assert x is not None
    return _native.Align(
        (*x.shape, _width(phi_x)),
        _with_offset(temperature, offset),
        weight,
        [_strided(t) for t in inputs],
        torch.get_num_threads(),
    )


@torch.library.custom_op("amcl_fast::native_align", mutates_args=())
def _align(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    weight: float,
    low: float,
    span: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, statistics, and what the backward pass needs of each row."""
    inputs = [_readable(t) for t in (x, y, phi_x, phi_y)]
    arguments = _align_arguments(inputs, offset, weight, (low, span, beta))
    values = x.new_empty(x.shape[:2])
    factors = x.new_empty(*x.shape[:2], _native.ALIGN_FACTORS)
    sums = _native.align_forward(_is_double(x), arguments, _address(values), _address(factors))
    return values, _summary(sums, low, values), factors


@_align.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[:2]), x.new_empty(5), x.new_empty(*x.shape[:2], _native.ALIGN_FACTORS)


@torch.library.custom_op("amcl_fast::native_align_backward", mutates_args=())
def _align_backward(
    upstream: Tensor,
    factors: Tensor,
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    weight: float,
    low: float,
    span: float,
    beta: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four tables and of the offset."""
    inputs = [_readable(t) for t in (x, y, phi_x, phi_y)]
    upstream = upstream.contiguous()
    outputs = _Outputs(inputs, needs)
    _native.align_backward(
        _is_double(upstream),
        _align_arguments(inputs, offset, weight, (low, span, beta)),
        _address(upstream),
        _address(factors),
        *outputs.arguments(),
    )
    a, b, c, d, e = stand_ins(upstream, outputs.gradients(upstream.dtype))
    return a, b, c, d, e


@_align_backward.register_fake
def _(upstream: Tensor, factors: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients(upstream, arguments[:5], arguments[-1])


def _align_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], *inputs[:5])
    ctx.settings = inputs[5:]


@once
def _align_gradients(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return 9 * (None,)
    needs = list(ctx.needs_input_grad[:5])
    grads = _align_backward(upstream, *ctx.saved_tensors, *ctx.settings, needs)
    return *masked(grads, needs), None, None, None, None


_align.register_autograd(_align_gradients, setup_context=_align_setup)


@torch.library.custom_op("amcl_fast::native_decorrelate", mutates_args=())
def _decorrelate(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    lambd: float,
    low: float,
    span: float,
    beta: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Value of each head, statistics on and off the diagonal, and the wanted gradients, which need only be scaled."""
    inputs = [_readable(t) for t in (x, y, phi_x, phi_y)]
    outputs = _Outputs(inputs, wanted)
    values = torch.empty(x.shape[0], dtype=torch.float64)
    on, off = _native.decorrelate(
        _is_double(x),
        (*x.shape, _width(phi_x)),
        _with_offset((low, span, beta), offset),
        lambd,
        [_strided(t) for t in inputs],
        torch.get_num_threads(),
        _address(values),
        *outputs.arguments(),
    )
    a, b, c, d, e = stand_ins(x, outputs.by_head())
    return values.to(x.dtype), _summary(on, low, x), _summary(off, low, x), a, b, c, d, e


@_decorrelate.register_fake
def _(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    lambd: float,
    low: float,
    span: float,
    beta: float,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    made = _fake_by_head((x, y, phi_x, phi_y, offset), wanted)
    return x.new_empty(x.shape[0]), x.new_empty(5), x.new_empty(5), *made


def _decorrelate_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[3:])


@once
def _decorrelate_gradients(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return 10 * (None,)
    made = masked(ctx.saved_tensors, ctx.needs_input_grad[:5])
    return *_scaled(made, upstream), *(None for _ in range(5))


_decorrelate.register_autograd(_decorrelate_gradients, setup_context=_decorrelate_setup)


def _check_floating(**tensors: Tensor | None) -> None:
    """Checks that all are CPU tensors of one dtype that the engine takes."""
    dtype = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {tensor.device}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}")
        dtype = dtype or tensor.dtype
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype} like the other tensors, got {tensor.dtype}")


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> torch.Size:
    """Checks a shape, None standing for any size, and returns it; empty tensors are not accepted."""
    fits = tensor.dim() == len(shape) and all(
        have > 0 and want in (None, have) for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have the shape ({wanted}) and not be empty, got {tuple(tensor.shape)}")
    return tensor.shape


def _expect_phi(
    x_name: str,
    phi_x: Tensor | None,
    x_shape: tuple[int, int],
    y_name: str,
    phi_y: Tensor | None,
    y_shape: tuple[int, int],
) -> None:
    if phi_x is None and phi_y is None:
        return
    if phi_x is None or phi_y is None:
        raise ValueError(f"{x_name} and {y_name} must be given both or neither")
    width = _expect(x_name, phi_x, (*x_shape, None))[2]
    _expect(y_name, phi_y, (*y_shape, width))


def _readable(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself if its rows are contiguous and do not overlap, as BLAS wants them; else a copy."""
    if tensor is None or (tensor.stride(-1) == 1 and tensor.stride(-2) >= tensor.shape[-1]):
        return tensor
    return tensor.contiguous()


def _strided(tensor: Tensor | None) -> tuple[int, int, int] | None:
    """Address and strides of a tensor's heads and rows."""
    if tensor is None:
        return None
    # To torch the stride of a single row means nothing and may be anything; BLAS wants it no smaller than the row.
    row_stride = tensor.stride(1) if tensor.shape[1] > 1 else tensor.shape[2]
    return tensor.data_ptr(), tensor.stride(0), row_stride


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _width(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[-1]


def _is_double(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float64


def _with_offset(temperature: tuple[float, float, float], offset: Tensor | None) -> tuple[float, float, float, float]:
    """low, span, offset and beta, as the engine takes them."""
    low, span, beta = temperature
    return low, span, 0.0 if offset is None else float(offset), beta


def _summary(sums: tuple[float, ...], low: float, like: Tensor) -> Tensor:
    """Statistics (5,) from the engine's sums, which measure τ from `low`; NaN for an empty set."""
    s, rise, rise_squared, lowest, at_bound, count = sums
    if count == 0:
        return like.new_full((5,), math.nan)
    mean = rise / count
    # max(NaN, 0) would hide a NaN if it stood second.
    deviation = math.sqrt(max(rise_squared / count - mean * mean, 0.0))
    return like.new_tensor([s / count, low + mean, deviation, lowest, at_bound / count])
