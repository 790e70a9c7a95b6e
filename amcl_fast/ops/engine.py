"""The C++ engine `amcl_fast._native` as Python sees it: torch's BLAS, addresses and strides, outputs, statistics."""

import ctypes
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import _native

Address = int
Strided = tuple[Address, int, int]
"""Address, and strides of heads and rows."""


def connect_blas() -> None:
    """Gives the engine torch's sgemm and dgemm; without them it multiplies by plain loops."""
    prefix, suffix = {"darwin": ("lib", "dylib"), "win32": ("", "dll")}.get(sys.platform, ("lib", "so"))
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"{prefix}torch_cpu.{suffix}"))
        products = library.sgemm_, library.dgemm_
    except (OSError, AttributeError):
        return
    set_threads = getattr(library, "MKL_Set_Num_Threads_Local", 0)
    _native.use_blas(*(ctypes.cast(f, ctypes.c_void_p).value or 0 for f in (*products, set_threads)))


connect_blas()


class Tables:
    """x, y, φx and φy as the engine reads them: their rows contiguous, and held while it does.

    Attributes:
        strided: of each, None where there is none.
        shape: of x, (C, rows, d).
        candidates: rows of y.
        phi_width: 0 for a constant temperature.
        is_double: whether they are float64, and not float32.
    """

    def __init__(self, x: Tensor, y: Tensor, phi_x: Tensor | None, phi_y: Tensor | None) -> None:
        self._read = [_readable(t) for t in (x, y, phi_x, phi_y)]
        self.strided = [_strided(t) for t in self._read]
        self.shape = x.shape
        self.candidates = y.shape[1]
        self.phi_width = width(phi_x)
        self.is_double = x.dtype == torch.float64


class Call:
    """The arguments of a contrast or a calibration; what the engine reads is held as long as they are.

    Args:
        tables: anchors, candidates, and φ of both.
        skip: (A, S), or None.
        form: of the negatives.
        top_k: how many of them count.
        settings: as `temperature` returns them.
        tau: (C, A), a temperature per anchor, or None.
        similarities, columns: (C, A, top_k), the negatives that count, or None: the engine looks for them.
    """

    def __init__(
        self,
        tables: Sequence[Tensor | None],
        skip: Tensor | None,
        form: _native.Form,
        top_k: int,
        settings: tuple[float, float, float, float],
        tau: Tensor | None = None,
        similarities: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> None:
        anchors, candidates, *phi = tables
        assert anchors is not None and candidates is not None
        read = Tables(anchors, candidates, *phi)
        skip, tau, similarities, columns = held = [whole(t) for t in (skip, tau, similarities, columns)]
        self._held = read, held
        self.is_double = read.is_double
        heads, count, dim = read.shape
        self.arguments = _native.Contrast(
            (heads, count, read.candidates, dim, read.phi_width, top_k, width(skip)),
            form,
            settings,
            read.strided,
            address(skip),
            address(tau),
            address(similarities),
            address(columns),
            torch.get_num_threads(),
        )


class Gradients:
    """Memory for the gradients by x, y, φx, φy and the offset, those that are needed."""

    def __init__(self, tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> None:
        # empty(shape) and not empty_like: an input's strides may overlap or have gaps.
        self.tables = [
            torch.empty(t.shape, dtype=t.dtype) if t is not None and need else None
            for t, need in zip(tensors[:4], needs[:4], strict=True)
        ]
        x = tensors[0]
        assert x is not None
        self._dtype = x.dtype
        self.offset = torch.empty(x.shape[0], dtype=torch.float64) if needs[4] else None

    def arguments(self) -> tuple[list[Strided | None], Address]:
        return [_strided(t) for t in self.tables], address(self.offset)

    def by_head(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients, that of the offset still one float64 a head."""
        x, y, phi_x, phi_y = self.tables
        return x, y, phi_x, phi_y, self.offset

    def all(self) -> list[Tensor | None]:
        return [*self.tables, None if self.offset is None else self.offset.sum().to(self._dtype)]


def fake_by_head(tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    """`Gradients.by_head` as fake tensors."""
    made = [
        t.new_empty(t.shape) if t is not None and need else None for t, need in zip(tensors[:4], needs[:4], strict=True)
    ]
    x = tensors[0]
    assert x is not None
    return [*made, x.new_empty(x.shape[0], dtype=torch.float64) if needs[4] else None]


def temperature(
    tau_min: float, tau_span: float, beta: float, offset: Tensor | None
) -> tuple[float, float, float, float]:
    """τ = tau_min + tau_span·σ(−(r − offset)), and β, as the engine takes them."""
    return tau_min, tau_span, 0.0 if offset is None else float(offset), beta


def summary(sums: tuple[float, ...], tau_min: float, like: Tensor) -> Tensor:
    """Statistics (5,) from the engine's sums, which measure τ from `tau_min`; NaN for an empty set."""
    s, rise, rise_squared, lowest, at_bound, count = sums
    if count == 0:
        return like.new_full((5,), math.nan)
    mean = rise / count
    # max(NaN, 0) would hide a NaN if it stood second.
    deviation = math.sqrt(max(rise_squared / count - mean * mean, 0.0))
    return like.new_tensor([s / count, tau_min + mean, deviation, lowest, at_bound / count])


def address(tensor: Tensor | None) -> Address:
    """Of a contiguous tensor; 0 if there is none."""
    return 0 if tensor is None else tensor.data_ptr()


def width(tensor: Tensor | None) -> int:
    """Length of the rows; 0 if there are none."""
    return 0 if tensor is None else tensor.shape[-1]


def whole(tensor: Tensor | None) -> Tensor | None:
    """The tensor, contiguous."""
    return None if tensor is None else tensor.contiguous()


def _readable(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself if its rows are contiguous and do not overlap, as BLAS wants them; else a copy."""
    if tensor is None or (tensor.stride(-1) == 1 and tensor.stride(-2) >= tensor.shape[-1]):
        return tensor
    return tensor.contiguous()


def _strided(tensor: Tensor | None) -> Strided | None:
    if tensor is None:
        return None
    # To torch the stride of a single row means nothing and may be anything; BLAS wants it no smaller than the row.
    row_stride = tensor.stride(1) if tensor.shape[1] > 1 else tensor.shape[2]
    return tensor.data_ptr(), tensor.stride(0), row_stride
