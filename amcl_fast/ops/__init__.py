"""The three operators and the choice of their backend.

`contrast`, `align` and `decorrelate` have the signatures of `amcl_fast.reference`, plus `backend`:

- `reference`  plain PyTorch, any device and dtype;
- `native`     C++ on CPU tensors, float32 and float64;
- `triton`     fused kernels on CUDA tensors, float32, bfloat16 and float16 (and on CPU tensors under Triton's
  interpreter, for tests);
- `auto`       the fastest of these that is installed and fits the tensors.

`native` and `triton` know first derivatives, backwards. torch would take forward-mode tangents through them for zero,
so in forward-mode differentiation and in transforms of torch.func they are refused, and `auto` is `reference`; a
second derivative, which shows only in the backward pass, is an error there.
"""

from typing import Any

import torch
from torch import Tensor

from .. import capabilities, reference, rows
from ..reference import Stats
from ..rows import Prepared, transformed

BACKENDS = ("auto", "triton", "native", "reference")


def resolve(backend: str, tensor: Tensor) -> str:
    """The backend that `backend` means for operators on `tensor`.

    Raises:
        ValueError: unknown name, or the backend cannot take this device or dtype.
        RuntimeError: the backend is not available here; the message says why.
        NotImplementedError: the call is differentiated in forward mode or transformed by torch.func.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if backend == "auto":
        if transformed():
            return "reference"
        if tensor.is_cuda and tensor.dtype != torch.float64 and _problem("triton") is None:
            return "triton"
        if tensor.device.type == "cpu" and _problem("native") is None:
            return "native"
        return "reference"
    if backend == "native" and tensor.device.type != "cpu":
        raise ValueError(f"backend 'native' takes CPU tensors, got {tensor.device}")
    if backend == "triton" and tensor.dtype == torch.float64:
        raise ValueError("backend 'triton' takes float32, bfloat16 and float16, got torch.float64")
    if backend != "reference" and (problem := _problem(backend)) is not None:
        raise RuntimeError(f"backend {backend!r} is not available: {problem}")
    if backend != "reference" and transformed():
        raise NotImplementedError(
            f"backend {backend!r} has no forward-mode derivative and takes no part in torch.func; "
            "backend='reference' does"
        )
    return backend


def contrast(*tensors: Tensor | None, backend: str, **settings: Any) -> tuple[Tensor, Stats]:
    """`amcl_fast.reference.contrast` on a backend."""
    return _implementation(backend, tensors, settings).contrast(*tensors, **settings)


def align(*tensors: Tensor | None, backend: str, **settings: Any) -> tuple[Tensor, Stats]:
    """`amcl_fast.reference.align` on a backend."""
    return _implementation(backend, tensors, settings).align(*tensors, **settings)


def decorrelate(*tensors: Tensor | None, backend: str, **settings: Any) -> tuple[Tensor, Stats, Stats]:
    """`amcl_fast.reference.decorrelate` on a backend."""
    return _implementation(backend, tensors, settings).decorrelate(*tensors, **settings)


def prepared(x: Tensor, y: Tensor | None, *, backend: str, **settings: Any) -> Prepared:
    """`amcl_fast.rows.prepared` on a backend."""
    if not fused(backend, x):
        return rows.prepared(x, y, **settings)
    from . import triton

    return triton.prepared(x, y, **settings)


def total(positive: Tensor, negative: Tensor, *, joined: bool, weight: float, backend: str) -> Tensor:
    """weight · Σ of a contrast's rows where `fused`: those of N pairs (C, N), and of both their anchors (C, 2N).

    `joined`: the positive is one more logit of its anchors' log-sum-exp.
    """
    assert fused(backend, negative)
    from . import triton

    return triton.total(positive, negative, joined=joined, weight=weight)


def fused(backend: str, x: Tensor) -> bool:
    """Whether `backend` has kernels of its own for what surrounds an operator on `x` (C, N, d)."""
    return x.shape[1] > 0 and resolve(backend, x) == "triton"


def _implementation(backend: str, tensors: tuple[Tensor | None, ...], settings: dict[str, Any]) -> Any:
    first = tensors[0]
    assert first is not None
    resolved = resolve(backend, first)
    tau_min, tau_max = settings["tau_min"], settings["tau_max"]
    # Half precision is for products: τ is float32 then.
    normal = torch.finfo(torch.float64 if first.dtype == torch.float64 else torch.float32)
    if not normal.tiny <= tau_min <= tau_max <= normal.max:
        raise ValueError(
            f"{normal.tiny:.3g} <= tau_min <= tau_max <= {normal.max:.3g} must hold in {normal.dtype}, "
            f"got tau_min={tau_min} and tau_max={tau_max}"
        )
    if not first.shape[1]:
        # Of a process whose own batch is empty; the engines need not know how to do nothing.
        return reference
    # Imported on use: a machine without a compiler or without Triton still has the other backends.
    if resolved == "native":
        from . import native

        return native
    if resolved == "triton":
        from . import triton

        return triton
    return reference


def _problem(backend: str) -> str | None:
    """Why `backend` cannot be used here, None if it can."""
    status = capabilities.native_status() if backend == "native" else capabilities.triton_status()
    return None if status.available else status.reason


# torch.compile cannot trace the imports that answer this. It is what torch.compiler.assume_constant_result does; that
# function itself would import the compiler with amcl_fast.
_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]
