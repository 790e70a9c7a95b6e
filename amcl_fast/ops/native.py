"""The operators on the CPU by the C++ engine `amcl_fast._native`; signatures and meaning as in `amcl_fast.reference`.

Exact, with the tie rule of the reference, and with the same bits for any number of threads: matrix products are
made block by block, one thread each, by the BLAS that torch carries, and every sum has one order. Nothing of size
anchors × candidates is stored. float32 and float64; strides are free (a layout that BLAS cannot read is copied).
"""

import ctypes
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _native
from ..reference import NEGATIVES, Stats

_DTYPES = (torch.float32, torch.float64)

# A gemm with 32-bit integers, as torch's LP64 build exports it, cannot address more.
_MOST = 2**31 - 1


def _connect_blas() -> bool:
    """Gives the engine the addresses of torch's own sgemm and dgemm; False if torch does not export them."""
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    prefix = "" if sys.platform == "win32" else "lib"
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"{prefix}torch_cpu.{suffix}"))
        single, double = (ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in ("sgemm_", "dgemm_"))
    except (OSError, AttributeError):
        return False
    _native.use_blas(single or 0, double or 0)
    return True


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
) -> tuple[Tensor, Stats]:
    """`amcl_fast.reference.contrast` in C++.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape; the message names it.
    """
    _floating(
        anchors=anchors, candidates=candidates, phi_anchors=phi_anchors, phi_candidates=phi_candidates, offset=offset
    )
    heads, rows, width = _shape(anchors, "anchors", 3)
    _expect(candidates, "candidates", (heads, None, width))
    columns = candidates.shape[1]
    if (phi_anchors is None) != (phi_candidates is None):
        raise ValueError("phi_anchors and phi_candidates must be given both or neither")
    if phi_anchors is not None and phi_candidates is not None:
        _expect(phi_anchors, "phi_anchors", (heads, rows, None))
        _expect(phi_candidates, "phi_candidates", (heads, columns, phi_anchors.shape[2]))
    _check_temperature(tau_min, tau_max, beta, offset)
    if skip is not None:
        if skip.dtype != torch.int64 or skip.device.type != "cpu":
            raise TypeError(f"skip must be an int64 tensor on the CPU, got {skip.dtype} on {skip.device}")
        _expect(skip, "skip", (rows, None))
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives must be one of {NEGATIVES}, got {negatives!r}")
    available = columns - (0 if skip is None else skip.shape[1])
    if available < 1:
        raise ValueError(f"candidates must hold at least one negative, got {columns} of which {columns - available} are skipped")
    if negatives == "softmax":
        top_k = available
    elif top_k is None or top_k < 1:
        raise ValueError(f"top_k must be at least 1 for {negatives!r}, got {top_k}")
    call = _ContrastCall(
        form=negatives,
        top_k=min(top_k, available),
        temperature=_Temperature.of(tau_min, tau_max, beta, adaptive=phi_anchors is not None),
    )
    values, sums = _Contrast.apply(anchors, candidates, phi_anchors, phi_candidates, offset, skip, call)
    return values, _stats(sums)


@dataclass(frozen=True)
class _Temperature:
    """τ = low + span·σ(−r) and the weight of its regulariser, which a constant temperature does not have."""

    low: float
    span: float
    beta: float

    @classmethod
    def of(cls, tau_min: float, tau_max: float, beta: float, adaptive: bool) -> "_Temperature":
        return cls(tau_min, tau_max - tau_min, beta) if adaptive else cls(tau_min, 0.0, 0.0)

    def argument(self, offset: Tensor | None) -> tuple[float, float, float, float]:
        return self.low, self.span, 0.0 if offset is None else float(offset), self.beta


@dataclass(frozen=True)
class _ContrastCall:
    form: str
    top_k: int
    temperature: _Temperature


class _Contrast(torch.autograd.Function):
    """Top-k contrast: the forward pass leaves, per row, the k columns and the derivatives by their s and r."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        phi_anchors: Tensor | None,
        phi_candidates: Tensor | None,
        offset: Tensor | None,
        skip: Tensor | None,
        call: _ContrastCall,
    ) -> tuple[Tensor, Tensor]:
        a, b = _readable(anchors), _readable(candidates)
        phi_a, phi_b = _readable(phi_anchors), _readable(phi_candidates)
        if skip is not None:
            skip = skip.contiguous()
        heads, rows, width = a.shape
        values = a.new_empty(heads, rows)
        columns = ds = dr = None
        if any(ctx.needs_input_grad):
            columns = torch.empty(heads, rows, call.top_k, dtype=torch.int32)
            ds = a.new_empty(heads, rows, call.top_k)
            dr = None if phi_a is None else torch.empty_like(ds)
        arguments = (
            a.dtype == torch.float64,
            (heads, rows, b.shape[1], width, 0 if phi_a is None else phi_a.shape[2], call.top_k, _width(skip)),
            getattr(_native.Form, call.form),
            call.temperature.argument(offset),
            *(_strided(t) for t in (a, b, phi_a, phi_b)),
            _address(skip),
            torch.get_num_threads(),
        )
        sums = _native.contrast_topk_forward(*arguments, *(_address(t) for t in (values, columns, ds, dr)))
        ctx.save_for_backward(a, b, phi_a, phi_b, skip, columns, ds, dr)
        ctx.arguments = arguments
        summary = _summary(sums, call.temperature.low, a)
        ctx.mark_non_differentiable(summary)
        return values, summary

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, _, columns, ds, dr = ctx.saved_tensors
        grads = [
            torch.empty(t.shape, dtype=t.dtype) if needed else None
            for t, needed in zip(inputs, ctx.needs_input_grad[:4], strict=True)
        ]
        with_offset = ctx.needs_input_grad[4]
        upstream = upstream.contiguous()
        grad_offset = _native.contrast_topk_backward(
            *ctx.arguments,
            *(_address(t) for t in (upstream, columns, ds, dr)),
            *(_strided(t) for t in grads),
            with_offset,
        )
        return *grads, upstream.new_tensor(grad_offset) if with_offset else None, None, None


def _floating(**tensors: Tensor | None) -> None:
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


def _shape(tensor: Tensor, name: str, dims: int) -> torch.Size:
    if tensor.dim() != dims or 0 in tensor.shape:
        raise ValueError(f"{name} must have {dims} dimensions, none of them empty, got {tuple(tensor.shape)}")
    return tensor.shape


def _expect(tensor: Tensor, name: str, shape: tuple[int | None, ...]) -> None:
    """Checks a shape, None standing for any positive size."""
    fits = tensor.dim() == len(shape) and all(
        have > 0 and want in (None, have) for have, want in zip(tensor.shape, shape, strict=False)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have the shape ({wanted}), got {tuple(tensor.shape)}")


def _check_temperature(tau_min: float, tau_max: float, beta: float, offset: Tensor | None) -> None:
    if not (0 < tau_min <= tau_max and math.isfinite(tau_max)):
        raise ValueError(f"tau_min and tau_max must satisfy 0 < tau_min <= tau_max, got {tau_min} and {tau_max}")
    if not math.isfinite(beta):
        raise ValueError(f"beta must be finite, got {beta}")
    if offset is not None and offset.dim() != 0:
        raise ValueError(f"offset must be a 0-dim tensor, got the shape {tuple(offset.shape)}")


def _readable(tensor: Tensor | None) -> Any:
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


def _summary(sums: tuple[float, float, float, float, float, float], low: float, like: Tensor) -> Tensor:
    """The statistics of `_STATS` from the engine's sums, which measure τ from `low`."""
    s, rise, rise_squared, tau_lowest, at_bound, count = sums
    mean = rise / count
    deviation = math.sqrt(max(rise_squared / count - mean * mean, 0.0))
    return like.new_tensor([s / count, low + mean, deviation, tau_lowest, at_bound / count])


_STATS = ("similarity", "tau_mean", "tau_std", "tau_min", "tau_at_bound")


def _stats(summary: Tensor) -> Stats:
    return dict(zip(_STATS, summary.unbind(), strict=True))
