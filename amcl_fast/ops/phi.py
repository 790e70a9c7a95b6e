"""φ of rows by library products whose precision is its own, as a torch.library operator with autograd.

torch has one precision of float32 products for the whole process. The operator sets it for the time of its own calls,
in the forward pass and in the backward pass, wherever these run: in the thread of autograd, in compiled code, while a
CUDA graph is captured. No exception leaves it changed, and a lock keeps two threads from restoring each other's. A
product that another thread starts meanwhile would read it, and torch's older names of the setting, read by another
thread meanwhile, may raise that both are in use.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .registration import differentiable

_LOCK = threading.Lock()


@contextlib.contextmanager
def _products(precision: str, like: Tensor) -> Iterator[None]:
    """float32 products on CUDA in `precision`, "ieee" or "tf32", with "" as torch is set; autocast is off."""
    with torch.autocast(like.device.type, enabled=False):
        if not precision:
            yield
            return
        setting = torch.backends.cuda.matmul
        with _LOCK:
            before = setting.fp32_precision
            if before != precision:
                inherited = _is_inherited(before)
                setting.fp32_precision = precision
            try:
                yield
            finally:
                if before != precision:
                    setting.fp32_precision = "none" if inherited else before


def _is_inherited(value: str) -> bool:
    """Whether matmul's precision is torch's general one, and would follow it: reading it tells the value alone."""
    general: Any = torch.backends
    before = general.fp32_precision
    if before == "none" or value != before:
        return False
    other = "ieee" if before == "tf32" else "tf32"
    general.fp32_precision = other
    try:
        return bool(general.cuda.matmul.fp32_precision == other)
    finally:
        general.fp32_precision = before


def phi(rows: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], precision: str) -> Tensor:
    """Linear, ReLU, Linear of rows (C, R, d), of any strides: (C, R, m), contiguous.

    A table that lies transposed, as a queue does, is multiplied as it lies.

    Args:
        rows: float32.
        weights: (h, d), (h,), (m, h), (m,) of the two layers, in the dtype of `rows`.
        precision: of the products on CUDA, "ieee" or "tf32"; "" is what torch is set to.
    """
    result: Tensor = _phi(rows, *weights, precision)[0]
    return result


class _Phi(NamedTuple):
    rows: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    precision: str


def _forward(a: _Phi) -> tuple[Tensor, Tensor]:
    """φ, and its hidden rows (C, R, h) after the ReLU, which the backward pass reads."""
    heads, count, width = a.rows.shape
    with _products(a.precision, a.rows):
        hidden = a.rows.new_empty(heads, count, len(a.b1))
        # Without a copy rows of all heads are one matrix, or those of each head are one.
        if _foldable(a.rows):
            torch._addmm_activation(a.b1, a.rows.reshape(-1, width), a.w1.t(), out=hidden.view(-1, len(a.b1)))
        else:
            for x, out in zip(a.rows, hidden, strict=True):
                torch._addmm_activation(a.b1, x, a.w1.t(), out=out)
        return torch.addmm(a.b2, hidden.view(-1, len(a.b1)), a.w2.t()).view(heads, count, -1), hidden


def _fake(a: _Phi) -> list[Tensor]:
    heads, count, _ = a.rows.shape
    return [a.rows.new_empty(heads, count, b.shape[0]) for b in (a.b2, a.b1)]


def _backward(a: _Phi, needs: list[bool], gradient: Tensor, hidden: Tensor) -> list[Tensor | None]:
    by_out = gradient.reshape(-1, len(a.w2))
    flat = hidden.view(-1, len(a.w1))
    with _products(a.precision, a.rows):
        by_w2 = by_out.t() @ flat if needs[3] else None
        by_b2 = by_out.sum(0) if needs[4] else None
        by_rows = by_w1 = by_b1 = None
        if any(needs[:3]):
            by_hidden = by_out @ a.w2
            torch.ops.aten.threshold_backward.grad_input(by_hidden, flat, 0, grad_input=by_hidden)
            by_b1 = by_hidden.sum(0) if needs[2] else None
            if needs[1] and _foldable(a.rows):
                by_w1 = by_hidden.t() @ a.rows.reshape(-1, a.rows.shape[2])
            elif needs[1]:
                by_w1 = torch.bmm(by_hidden.view(hidden.shape).mT, a.rows).sum(0)
            by_rows = (by_hidden @ a.w1).view(a.rows.shape) if needs[0] else None
    return [by_rows, by_w1, by_b1, by_w2, by_b2]


_phi = differentiable("phi", _Phi, _forward, _fake, _backward, saves=(1,))


def _foldable(rows: Tensor) -> bool:
    """Whether the rows of all heads can be looked at as one matrix."""
    return len(rows) == 1 or rows.stride(0) == rows.shape[1] * rows.stride(1)
