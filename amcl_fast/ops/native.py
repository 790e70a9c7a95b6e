"""The operators on the CPU by the C++ engine `amcl_fast._native`; meaning and signatures as in `reference`.

Exact, with the reference's tie rule, and with the same bits for any number of threads: matrix products are
made block by block, one thread each, by the BLAS that torch carries, and every sum has one order. Nothing of
the size anchors × candidates is stored. float32 and float64; strides are free (rows that BLAS cannot read are
copied). To torch.compile each operator is one break of the graph.
"""

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _native
from ..reference import NEGATIVES, Stats

_DTYPES = (torch.float32, torch.float64)
# Order of the engine's statistics; the keys of `reference.stats`.
_STATS = ("similarity", "tau_mean", "tau_std", "tau_min", "tau_at_bound")


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


@torch.compiler.disable
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
    )
    heads, rows, width = _expect("anchors", anchors, (None, None, None))
    columns = _expect("candidates", candidates, (heads, None, width))[1]
    _expect_phi("phi_anchors", phi_anchors, (heads, rows), "phi_candidates", phi_candidates, (heads, columns))
    temperature = _Temperature.of(tau_min, tau_max, beta, offset, adaptive=phi_anchors is not None)
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
    if negatives == "topk_softmax" and top_k == available:
        negatives = "softmax"
    function = _ContrastSoftmax if negatives == "softmax" else _ContrastTopK
    values, summary = function.apply(
        anchors, candidates, phi_anchors, phi_candidates, offset, skip, negatives, top_k, temperature
    )
    return values, _stats(summary)


@torch.compiler.disable
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
    temperature = _Temperature.of(tau_min, tau_max, beta, offset, adaptive=phi_x is not None)
    values, summary = _Align.apply(x, y, phi_x, phi_y, offset, weight, temperature)
    return values, _stats(summary)


@torch.compiler.disable
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
    temperature = _Temperature.of(tau_min, tau_max, beta, offset, adaptive=phi_x is not None)
    values, on, off = _Decorrelate.apply(x, y, phi_x, phi_y, offset, lambd, temperature)
    return values, _stats(on), _stats(off)


@dataclass(frozen=True)
class _Temperature:
    """τ = low + span·σ(−(r − offset)) and the weight of its regulariser; a constant τ has span = β = 0."""

    low: float
    span: float
    beta: float

    @classmethod
    def of(cls, tau_min: float, tau_max: float, beta: float, offset: Tensor | None, adaptive: bool) -> "_Temperature":
        if not (0 < tau_min <= tau_max and math.isfinite(tau_max)):
            raise ValueError(f"0 < tau_min <= tau_max must hold, got tau_min={tau_min} and tau_max={tau_max}")
        if not math.isfinite(beta):
            raise ValueError(f"beta must be finite, got {beta}")
        if offset is not None and offset.dim() != 0:
            raise ValueError(f"offset must be a 0-dim tensor, got the shape {tuple(offset.shape)}")
        return cls(tau_min, tau_max - tau_min, beta) if adaptive else cls(tau_min, 0.0, 0.0)

    def argument(self, offset: Tensor | None) -> tuple[float, float, float, float]:
        return self.low, self.span, 0.0 if offset is None else float(offset.detach()), self.beta


class _Outputs:
    """Memory for the gradients by x, y, φx, φy and the offset, those that are wanted."""

    def __init__(self, inputs: Sequence[Any], wanted: Sequence[bool]) -> None:
        # empty(shape) and not empty_like: an input's strides may overlap or have gaps.
        self.rows = [
            torch.empty(t.shape, dtype=t.dtype) if t is not None and want else None
            for t, want in zip(inputs, wanted[:4], strict=True)
        ]
        x, _, phi_x, _ = inputs
        with_offset = wanted[4] and phi_x is not None
        self.offset = torch.empty(x.shape[0], dtype=torch.float64) if with_offset else None

    def arguments(self) -> tuple[list[tuple[int, int, int] | None], int]:
        return [_strided(t) for t in self.rows], _address(self.offset)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All five, as an operator without per-row upstream gradients saves them."""
        return *self.rows, self.offset

    def gradients(self, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        return *self.rows, None if self.offset is None else self.offset.sum().to(dtype)


def _scaled(gradients: Sequence[Tensor | None], by_head: Tensor) -> tuple[Tensor | None, ...]:
    """`_Outputs.tensors` of the heads' values, times the upstream gradient of each head."""
    *rows, offset = gradients
    scaled = [None if t is None else t * by_head[:, None, None] for t in rows]
    return *scaled, None if offset is None else (offset * by_head).sum().to(by_head.dtype)


def _contrast_arguments(
    inputs: Sequence[Any],
    offset: Tensor | None,
    skip: Tensor | None,
    form: str,
    top_k: int,
    temperature: _Temperature,
) -> Any:
    a, b, phi_a, _ = inputs
    shape = (*a.shape[:2], b.shape[1], a.shape[2], _width(phi_a), top_k, _width(skip))
    return _native.Contrast(
        shape,
        getattr(_native.Form, form),
        temperature.argument(offset),
        [_strided(t) for t in inputs],
        _address(skip),
        torch.get_num_threads(),
    )


class _ContrastTopK(torch.autograd.Function):
    """The forward pass leaves, for each row, its k columns and its derivatives by their s and r."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        phi_anchors: Tensor | None,
        phi_candidates: Tensor | None,
        offset: Tensor | None,
        skip: Tensor | None,
        form: str,
        top_k: int,
        temperature: _Temperature,
    ) -> tuple[Tensor, Tensor]:
        inputs = [_readable(t) for t in (anchors, candidates, phi_anchors, phi_candidates)]
        skip = None if skip is None else skip.contiguous()
        ctx.settings = form, top_k, temperature
        arguments = _contrast_arguments(inputs, offset, skip, *ctx.settings)
        values = anchors.new_empty(anchors.shape[:2])
        columns = ds = dr = None
        if any(ctx.needs_input_grad):
            columns = torch.empty(*values.shape, top_k, dtype=torch.int32)
            ds = values.new_empty(columns.shape)
            dr = None if phi_anchors is None else torch.empty_like(ds)
        sums = _native.contrast_topk_forward(
            _is_double(anchors), arguments, _address(values), _address(columns), _address(ds), _address(dr)
        )
        ctx.save_for_backward(*inputs, offset, skip, columns, ds, dr)
        summary = _summary(sums, temperature.low, values)
        ctx.mark_non_differentiable(summary)
        return values, summary

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _summary: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, offset, skip, columns, ds, dr = ctx.saved_tensors
        upstream = upstream.contiguous()
        outputs = _Outputs(inputs, ctx.needs_input_grad)
        _native.contrast_topk_backward(
            _is_double(upstream),
            _contrast_arguments(inputs, offset, skip, *ctx.settings),
            _address(upstream),
            _address(columns),
            _address(ds),
            _address(dr),
            *outputs.arguments(),
        )
        return *outputs.gradients(upstream.dtype), None, None, None, None


class _ContrastSoftmax(torch.autograd.Function):
    """The gradients of Σ values are made in the forward pass, where each row's S and R are at hand.

    A loss that averages over anchors gives all of a head one upstream gradient, so those gradients need
    only be scaled. Any other upstream gradient costs a second pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        phi_anchors: Tensor | None,
        phi_candidates: Tensor | None,
        offset: Tensor | None,
        skip: Tensor | None,
        form: str,
        top_k: int,
        temperature: _Temperature,
    ) -> tuple[Tensor, Tensor]:
        inputs = [_readable(t) for t in (anchors, candidates, phi_anchors, phi_candidates)]
        skip = None if skip is None else skip.contiguous()
        ctx.settings = form, top_k, temperature
        arguments = _contrast_arguments(inputs, offset, skip, *ctx.settings)
        values = anchors.new_empty(anchors.shape[:2])
        outputs = _Outputs(inputs, ctx.needs_input_grad)
        sums = _native.contrast_softmax(_is_double(anchors), arguments, 0, _address(values), *outputs.arguments())
        ctx.save_for_backward(*inputs, offset, skip, *outputs.tensors())
        summary = _summary(sums, temperature.low, values)
        ctx.mark_non_differentiable(summary)
        return values, summary

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _summary: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, offset, skip = ctx.saved_tensors[:6]
        made = ctx.saved_tensors[6:]
        by_head = upstream[:, :1]
        if torch.equal(upstream, by_head.expand_as(upstream)):
            return *_scaled(made, by_head[:, 0]), None, None, None, None
        # What belongs to an anchor is scaled with it; what sums over anchors is made anew.
        upstream = upstream.contiguous()
        by_x, by_phi_x = (None if made[i] is None else made[i] * upstream[..., None] for i in (0, 2))
        outputs = _Outputs(inputs, (False, ctx.needs_input_grad[1], False, *ctx.needs_input_grad[3:]))
        values = torch.empty_like(upstream)
        _native.contrast_softmax(
            _is_double(upstream),
            _contrast_arguments(inputs, offset, skip, *ctx.settings),
            _address(upstream),
            _address(values),
            *outputs.arguments(),
        )
        _, by_y, _, by_phi_y, by_offset = outputs.gradients(upstream.dtype)
        return by_x, by_y, by_phi_x, by_phi_y, by_offset, None, None, None, None


def _align_arguments(inputs: Sequence[Any], offset: Tensor | None, weight: float, temperature: _Temperature) -> Any:
    x, _, phi_x, _ = inputs
    return _native.Align(
        (*x.shape, _width(phi_x)),
        temperature.argument(offset),
        weight,
        [_strided(t) for t in inputs],
        torch.get_num_threads(),
    )


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        phi_x: Tensor | None,
        phi_y: Tensor | None,
        offset: Tensor | None,
        weight: float,
        temperature: _Temperature,
    ) -> tuple[Tensor, Tensor]:
        inputs = [_readable(t) for t in (x, y, phi_x, phi_y)]
        ctx.settings = weight, temperature
        arguments = _align_arguments(inputs, offset, *ctx.settings)
        values = x.new_empty(x.shape[:2])
        factors = x.new_empty(*x.shape[:2], 4)
        sums = _native.align_forward(_is_double(x), arguments, _address(values), _address(factors))
        ctx.save_for_backward(*inputs, offset, factors)
        summary = _summary(sums, temperature.low, values)
        ctx.mark_non_differentiable(summary)
        return values, summary

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _summary: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, offset, factors = ctx.saved_tensors
        upstream = upstream.contiguous()
        outputs = _Outputs(inputs, ctx.needs_input_grad)
        _native.align_backward(
            _is_double(upstream),
            _align_arguments(inputs, offset, *ctx.settings),
            _address(upstream),
            _address(factors),
            *outputs.arguments(),
        )
        return *outputs.gradients(upstream.dtype), None, None


class _Decorrelate(torch.autograd.Function):
    """One value per head: its gradients are made in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        phi_x: Tensor | None,
        phi_y: Tensor | None,
        offset: Tensor | None,
        lambd: float,
        temperature: _Temperature,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = [_readable(t) for t in (x, y, phi_x, phi_y)]
        outputs = _Outputs(inputs, ctx.needs_input_grad)
        values = torch.empty(x.shape[0], dtype=torch.float64)
        on, off = _native.decorrelate(
            _is_double(x),
            (*x.shape, _width(phi_x)),
            temperature.argument(offset),
            lambd,
            [_strided(t) for t in inputs],
            torch.get_num_threads(),
            _address(values),
            *outputs.arguments(),
        )
        ctx.save_for_backward(*outputs.tensors())
        summaries = _summary(on, temperature.low, x), _summary(off, temperature.low, x)
        ctx.mark_non_differentiable(*summaries)
        return values.to(x.dtype), *summaries

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_summaries: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled(ctx.saved_tensors, upstream), None, None


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
    return None if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _width(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[-1]


def _is_double(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float64


def _summary(sums: tuple[float, float, float, float, float, float], low: float, like: Tensor) -> Tensor:
    """The statistics of `_STATS` from the engine's sums, which measure τ from `low`; NaN for an empty set."""
    s, rise, rise_squared, lowest, at_bound, count = sums
    if count == 0:
        return like.new_full((len(_STATS),), math.nan)
    mean = rise / count
    # max(NaN, 0) would hide a NaN if it stood second.
    deviation = math.sqrt(max(rise_squared / count - mean * mean, 0.0))
    return like.new_tensor([s / count, low + mean, deviation, lowest, at_bound / count])


def _stats(summary: Tensor) -> Stats:
    return dict(zip(_STATS, summary.unbind(), strict=True))
