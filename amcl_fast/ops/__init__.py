"""The operators and the choice of their backend.

`contrast`, `calibrate`, `align` and `decorrelate` have the signatures of `amcl_fast.reference`, plus `backend`, and
check what they are given in one place for all backends (`ops.checks`):

- `reference`  plain PyTorch on any device, float32, float64, bfloat16, float16;
- `native`     C++ on CPU tensors, float32, float64;
- `triton`     fused kernels on CUDA tensors, float32, bfloat16, float16 (and on CPU tensors under Triton's
  interpreter, for tests);
- `auto`       the fastest of these that is installed and fits the tensors.

`native` and `triton` know first derivatives, backwards. torch would take forward-mode tangents through them for zero,
so in forward-mode differentiation and in transforms of torch.func they are refused, and `auto` is `reference`; a
second derivative, which shows only in the backward pass, is an error there.
"""

from typing import Any

import torch
from torch import Tensor

from .. import rows
from ..operator_settings import plain
from ..reference import Chosen, Stats
from ..rows import Prepared, transformed, widened
from ..setting_types import one_of
from . import backends, checks

__all__ = ["BACKENDS", "Chosen", "align", "calibrate", "contrast", "decorrelate", "resolve"]

BACKENDS = backends.NAMES
"""Names of backends."""


def resolve(backend: str, tensor: Tensor) -> str:
    """The backend that `backend` means for operators on `tensor`.

    Raises:
        ValueError: unknown name, or the backend takes no tensors of this device.
        TypeError: the backend takes no tensors of this dtype.
        RuntimeError: the backend is not available here; the message says why.
        NotImplementedError: the call is differentiated in forward mode or transformed by torch.func.
    """
    return _resolve(backend, "tensors", tensor, tensor.dtype)


def resolve_widened(backend: str, tensor: Tensor) -> str:
    """As `resolve`, for a loss on `tensor`, which widens to float32 what the operators would not take."""
    return _resolve(backend, "tensors", tensor, widened(tensor.dtype))


def _resolve(backend: str, name: str, tensor: Tensor, dtype: torch.dtype) -> str:
    """`resolve`, for operators that get the argument `name` in `dtype`."""
    one_of("backend", backend, ("auto", *backends.TABLE))
    if backend == "auto":
        first = None if transformed() else _first_that_fits(tensor.device.type, dtype)
        if first is not None:
            return first
        backend = "reference"
    known = backends.TABLE[backend]
    if dtype not in known.dtypes:
        raise TypeError(f"{name} must be one of {backends.named(known.dtypes)} for backend {backend!r}, got {dtype}")
    if (problem := _problem(backend)) is not None:
        raise RuntimeError(f"backend {backend!r} is not available: {problem}")
    if known.device not in (None, tensor.device.type) and not (backend == "triton" and _interpreted()):
        place = "the CPU" if known.device == "cpu" else f"a {known.device.upper()} device"
        raise ValueError(f"{name} must be on {place} for backend {backend!r}, got {tensor.device}")
    if backend != "reference" and transformed():
        raise NotImplementedError(
            f"backend {backend!r} has no forward-mode derivative and takes no part in torch.func; "
            "backend='reference' does"
        )
    return backend


def _first_that_fits(device: str, dtype: torch.dtype) -> str | None:
    for name, known in backends.TABLE.items():
        if known.device in (None, device) and dtype in known.dtypes and _problem(name) is None:
            return name
    return None


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
    tau: Tensor | None = None,
    chosen: Chosen | None = None,
    backend: str,
) -> tuple[Tensor, Stats]:
    """`amcl_fast.reference.contrast` on a backend: the negative term of every anchor and head (Eq. 1.1, 1.4, 2.1, 2.4).

    Args:
        anchors: (C, A, d), L2-normalised; A may be 0, as that of a process whose own batch is empty.
        candidates: (C, B, d), L2-normalised. Where they and their φ are the anchors' own tensors, these get one
            gradient.
        phi_anchors, phi_candidates: (C, A, m) and (C, B, m), or both None for a constant temperature.
        offset: 0-dim tensor subtracted from every r, or None.
        skip: (A, S) int64, for each anchor the S ≥ 1 distinct candidate columns that are not negatives of it, fewer
            than B; None if all are.
        tau_min, tau_max: range of τ.
        negatives: one of `reference.NEGATIVES`.
        top_k: κ ≥ 1; not read with `softmax`.
        beta: β, weight of the regulariser.
        extra: (C, A), a logit that joins the log-sum-exp of its anchor, or None, which it must be with `topk_mean`.
        tau: (C, A), a temperature per anchor, which has a gradient; only without φ and with β = 0. tau_min and tau_max
            count for its statistics alone. None: the temperature is φ's or the constant `tau_min`.
        chosen: the hardest negatives, from `calibrate` of the same tables and settings; None: they are looked for.
        backend: one of `BACKENDS`.

    Returns:
        (rows, stats): rows (C, A), float32 on `triton`; stats as in `reference.stats`.

    Raises:
        ValueError, TypeError: an argument of the wrong kind, dtype, device, shape or size; the message names it. The
            range of `skip` is looked at on the CPU, outside of compiled code.
    """
    tensors = (anchors, candidates, phi_anchors, phi_candidates, offset, skip, extra)
    resolved = _resolved(backend, "anchors", anchors)
    checks.contrast(tensors, tau_min, tau_max, negatives, top_k, beta, tau, chosen)
    *tables, extra, tau = rows.savable(*tensors, tau)
    result: tuple[Tensor, Stats] = _implementation(resolved, anchors).contrast(
        *tables,
        tau_min=plain(tau_min),
        tau_max=plain(tau_max),
        negatives=negatives,
        top_k=top_k,
        beta=plain(beta),
        extra=extra,
        tau=tau,
        chosen=chosen,
    )
    return result


def calibrate(
    anchors: Tensor,
    candidates: Tensor,
    skip: Tensor | None,
    *,
    tau_min: float,
    tau_max: float,
    negatives: str,
    top_k: int | None,
    perplexity: float,
    backend: str,
) -> tuple[Tensor, Chosen | None]:
    """`amcl_fast.reference.calibrate` on a backend: τ at which an anchor's negatives have a given perplexity.

    Args:
        anchors, candidates, skip, negatives, top_k, backend: as in `contrast`, which they are for.
        tau_min, tau_max: range of τ.
        perplexity: share of the negatives that count, above 0 and below 1.

    Returns:
        (tau, chosen): tau (C, A), float32 or better, detached; the hardest negatives for `contrast`, in an order of the
        backend's, None with `softmax`, which takes all; `triton` has none either where `top_k` takes all.

    Raises:
        ValueError, TypeError: as `contrast`.
    """
    resolved = _resolved(backend, "anchors", anchors)
    checks.calibrate(anchors, candidates, skip, tau_min, tau_max, negatives, top_k, perplexity)
    result: tuple[Tensor, Chosen | None] = _implementation(resolved, anchors).calibrate(
        anchors.detach(),
        candidates.detach(),
        skip,
        tau_min=plain(tau_min),
        tau_max=plain(tau_max),
        negatives=negatives,
        top_k=top_k,
        perplexity=plain(perplexity),
    )
    return result


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
    backend: str,
) -> tuple[Tensor, Stats]:
    """`amcl_fast.reference.align` on a backend: −weight·s/τ + β·Ω(τ) of paired rows (Eq. 1.2, 2.2).

    Args:
        x, y: (C, N, d), of any norm; N may be 0.
        phi_x, phi_y: (C, N, m), or both None for a constant temperature.
        offset, tau_min, tau_max, beta, backend: as in `contrast`.
        weight: factor of s/τ.

    Returns:
        (rows, stats): rows (C, N), float32 on `triton`; stats as in `reference.stats`.

    Raises:
        ValueError, TypeError: as `contrast`.
    """
    tensors = (x, y, phi_x, phi_y, offset)
    resolved = _resolved(backend, "x", x)
    checks.paired(tensors, tau_min, tau_max, weight=weight, beta=beta)
    result: tuple[Tensor, Stats] = _implementation(resolved, x).align(
        *rows.savable(*tensors), tau_min=plain(tau_min), tau_max=plain(tau_max), weight=plain(weight), beta=plain(beta)
    )
    return result


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
    backend: str,
) -> tuple[Tensor, Stats, Stats]:
    """`amcl_fast.reference.decorrelate` on a backend: Barlow Twins with a temperature per pair of channels (Eq. 2.3).

    Args:
        x, y: (C, d, N), channel vectors standardised along the batch.
        phi_x, phi_y: (C, d, m), φ of the raw channel vectors, or both None for a constant temperature.
        offset, tau_min, tau_max, beta, backend: as in `contrast`.
        lambd: λ, weight of the off-diagonal.

    Returns:
        (losses, on, off): losses (C,), of each head, float32 on `triton`; stats on the diagonal and off it.

    Raises:
        ValueError, TypeError: as `contrast`.
    """
    tensors = (x, y, phi_x, phi_y, offset)
    resolved = _resolved(backend, "x", x)
    checks.paired(tensors, tau_min, tau_max, lambd=lambd, beta=beta)
    result: tuple[Tensor, Stats, Stats] = _implementation(resolved, x).decorrelate(
        *rows.savable(*tensors), tau_min=plain(tau_min), tau_max=plain(tau_max), lambd=plain(lambd), beta=plain(beta)
    )
    return result


def prepared(x: Tensor, y: Tensor | None, *, backend: str, **settings: Any) -> Prepared:
    """`amcl_fast.rows.prepared` on a backend."""
    if not fused(backend, x):
        return rows.prepared(x, y, **settings)
    from . import triton_rows

    return triton_rows.prepared(x, y, **settings)


def total(positive: Tensor, negative: Tensor, *, joined: bool, weight: float, backend: str) -> Tensor:
    """weight · Σ of a contrast's rows where `fused`: those of N pairs (C, N), and of both their anchors (C, 2N).

    `joined`: the positive is one more logit of its anchors' log-sum-exp.
    """
    assert fused(backend, negative)
    from . import triton_rows

    return triton_rows.total(positive, negative, joined=joined, weight=weight)


def fused(backend: str, x: Tensor) -> bool:
    """Whether `backend` has kernels of its own for what surrounds an operator on `x` (C, N, d)."""
    return x.shape[1] > 0 and resolve_widened(backend, x) == "triton"


def _resolved(backend: str, name: str, first: Tensor) -> str:
    checks.tensor(name, first)
    return _resolve(backend, name, first, first.dtype)


def _implementation(resolved: str, first: Tensor) -> Any:
    """The module of a resolved backend."""
    # No rows are those of a process whose own batch is empty; the engines need not know how to do nothing.
    return backends.TABLE[resolved if first.shape[1] else "reference"].module()


def _problem(backend: str) -> str | None:
    """Why `backend` cannot be used here, None if it can."""
    status = backends.TABLE[backend].status()
    return None if status.available else status.reason


def _interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, which takes tensors of the CPU."""
    from .triton import INTERPRETED

    return INTERPRETED


# torch.compile cannot trace the imports that answer these. It is what torch.compiler.assume_constant_result does; that
# function itself would import the compiler with amcl_fast.
_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]
_interpreted._dynamo_marked_constant = True  # type: ignore[attr-defined]
