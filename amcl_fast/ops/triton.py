"""The operators by the kernels of `amcl_fast.kernels`; meaning and signatures as in `reference`, checked in `ops`.

Inputs are float32, bfloat16 or float16; products take them as they are, everything after is float32, and so are the
returned rows. The kernels take CUDA tensors, or CPU tensors under Triton's interpreter (TRITON_INTERPRET=1).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..kernels.align import BY_OFFSET, FACTORS, align_backward, align_forward
from ..kernels.decorrelate import decorrelate as decorrelate_strips
from ..kernels.dense import dense_backward, dense_forward
from ..kernels.perplexity import perplexity_of_all, perplexity_of_chosen
from ..kernels.select import hardest
from ..kernels.topk import topk_backward, topk_forward
from ..reference import Chosen, Stats
from . import registration
from .tensors import named, needed, present, stand_ins

INTERPRETED = triton.knobs.runtime.interpret


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, on the GPU that holds its first tensor: Triton launches on the current one."""

    @functools.wraps(function)
    def guarded(first: Tensor, *rest: Any) -> Any:
        if first.is_cuda and first.get_device() == torch.cuda.current_device():
            return function(first, *rest)
        with torch.cuda.device_of(first):
            return function(first, *rest)

    return guarded


differentiable = functools.partial(registration.differentiable, around=_on_its_device)
scaling = functools.partial(registration.scaling, around=_on_its_device)


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
) -> tuple[Tensor, Stats]:
    """`amcl_fast.reference.contrast`."""
    # One table has one gradient.
    one = candidates is anchors and phi_candidates is phi_anchors
    given = (anchors, None if one else candidates, phi_anchors, None if one else phi_candidates, offset, extra, tau)
    *tensors, extra, tau = exact(*given)
    similarities, columns = (None, None) if chosen is None else chosen
    of_tau = (tau, similarities, columns, *needed(tau))
    count = _count(candidates, skip, negatives, top_k)
    rows, stats, *_ = _contrast(*tensors, skip, extra, *of_tau, count, negatives == "topk_mean", tau_min, tau_max, beta)
    return rows, named(stats)


def _count(candidates: Tensor, skip: Tensor | None, negatives: str, top_k: int | None) -> int:
    """Size of T."""
    available = candidates.shape[1] - (0 if skip is None else skip.shape[1])
    return available if negatives == "softmax" or top_k is None else min(top_k, available)


class _Contrast(NamedTuple):
    """Without candidates the anchors are the candidates, and their gradients those of both.

    `similarities` and `columns` are those of T, if it is known; `needs_tau`: τ has a gradient.
    """

    anchors: Tensor
    candidates: Tensor | None
    phi_anchors: Tensor | None
    phi_candidates: Tensor | None
    offset: Tensor | None
    skip: Tensor | None
    extra: Tensor | None
    tau: Tensor | None
    similarities: Tensor | None
    columns: Tensor | None
    needs_tau: bool
    top_k: int
    mean: bool
    tau_min: float
    tau_max: float
    beta: float

    @property
    def all_chosen(self) -> bool:
        if self.columns is not None:
            return False
        rows = (self.anchors if self.candidates is None else self.candidates).shape[1]
        return self.top_k == rows - (0 if self.skip is None else self.skip.shape[1])


def _contrast_forward(
    a: _Contrast,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Rows, stats, and what the backward pass over the chosen candidates needs, but for what was given; the shares
    alone if all are chosen. Last ∂rows/∂extra and ∂rows/∂τ.
    """
    anchors, offset, range_and_beta = a.anchors, a.offset, (a.tau_min, a.tau_max, a.beta)
    candidates, phi_candidates = a.candidates, a.phi_candidates
    if candidates is None:
        candidates, phi_candidates = anchors, a.phi_anchors
    tables = (anchors, candidates, a.phi_anchors, phi_candidates)
    if a.all_chosen:
        rows, stats, shares, *more = dense_forward(
            *tables, offset, a.skip, a.mean, *range_and_beta, a.extra, a.tau, a.needs_tau
        )
        return rows, stats, None, present(shares), None, present(more[0]), present(more[1])
    if a.similarities is None or a.columns is None:
        similarities, chosen = hardest(anchors, candidates, a.skip, a.top_k)
    else:
        similarities, chosen = a.similarities.float().contiguous(), a.columns.contiguous()
    rows, slope_s, slope_r, stats, *more = topk_forward(
        *tables[2:],
        offset,
        similarities,
        chosen,
        a.mean,
        *range_and_beta,
        anchors.shape[2],
        a.extra,
        a.tau,
        a.needs_tau,
    )
    found = chosen if a.columns is None else None
    return rows, stats, found, slope_s, present(slope_r), present(more[0]), present(more[1])


def _contrast_fake(a: _Contrast) -> list[Tensor | None]:
    rows = float32(a.anchors, a.anchors.shape[:2])
    made: list[Tensor | None] = [rows, rows.new_empty(5)]
    of_rows = [rows.new_empty(rows.shape) if there else None for there in (a.extra is not None, a.needs_tau)]
    pairs = (*rows.shape, a.top_k)
    if a.all_chosen:
        return [*made, None, None if a.mean else rows.new_empty(2, *rows.shape), None, *of_rows]
    chosen = rows.new_empty(pairs, dtype=torch.int32) if a.columns is None else None
    slope_r = None if a.phi_anchors is None else rows.new_empty(pairs)
    return [*made, chosen, rows.new_empty(pairs), slope_r, *of_rows]


def _contrast_backward(
    a: _Contrast,
    needs: list[bool],
    gradient: Tensor,
    chosen: Tensor | None,
    shares: Tensor | None,
    slope_r: Tensor | None,
    of_extra: Tensor | None,
    of_tau: Tensor | None,
) -> list[Tensor | None]:
    of_tables = needs[0], needs[1], needs[2], needs[3], needs[4]
    tensors = (a.anchors, a.candidates, a.phi_anchors, a.phi_candidates, a.offset)
    shares, slope_r = stand_ins(gradient, (shares, slope_r))
    grads: list[Tensor | None] = [None] * 5
    if a.columns is not None:
        chosen = a.columns.contiguous()
    if not any(of_tables):
        pass
    elif chosen is None:
        settings = (a.mean, a.tau_min, a.tau_max, a.beta)
        grads[:] = dense_backward(gradient, shares, *tensors, a.skip, *settings, of_tables, a.tau)
    else:
        grads[:] = topk_backward(gradient, shares, slope_r, chosen, *tensors, of_tables)
    by_extra, by_tau = (
        (gradient * slope).to(given.dtype) if given is not None and slope is not None and need else None
        for given, slope, need in ((a.extra, of_extra, needs[6]), (a.tau, of_tau, needs[7]))
    )
    return [*grads, None, by_extra, by_tau, None, None]


_contrast = differentiable(
    "triton_contrast", _Contrast, _contrast_forward, _contrast_fake, _contrast_backward, saves=(2, 3, 4, 5, 6)
)


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
) -> tuple[Tensor, Chosen | None]:
    """`amcl_fast.reference.calibrate`; T is None wherever it is all negatives."""
    count = _count(candidates, skip, negatives, top_k)
    tau, similarities, columns = _calibrate(*exact(anchors, candidates), skip, count, tau_min, tau_max, perplexity)
    chosen = present(similarities)
    return tau, None if chosen is None else Chosen(chosen, columns)


def _all(candidates: Tensor, skip: Tensor | None, top_k: int) -> bool:
    """Whether T is all negatives."""
    return top_k == candidates.shape[1] - (0 if skip is None else skip.shape[1])


@_on_its_device
def _calibrated(
    anchors: Tensor,
    candidates: Tensor,
    skip: Tensor | None,
    top_k: int,
    tau_min: float,
    tau_max: float,
    perplexity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """τ, and similarities and columns of T unless it is all negatives."""
    if _all(candidates, skip, top_k):
        tau = perplexity_of_all(anchors, candidates, skip, perplexity, tau_min, tau_max)
        return tau, *_absent(tau)
    similarities, columns = hardest(anchors, candidates, skip, top_k)
    return perplexity_of_chosen(similarities, perplexity, tau_min, tau_max), similarities, columns


def _calibrated_fake(
    anchors: Tensor,
    candidates: Tensor,
    skip: Tensor | None,
    top_k: int,
    tau_min: float,
    tau_max: float,
    perplexity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    tau = float32(anchors, anchors.shape[:2])
    if _all(candidates, skip, top_k):
        return tau, *_absent(tau)
    pairs = (*tau.shape, top_k)
    return tau, tau.new_empty(pairs), tau.new_empty(pairs, dtype=torch.int32)


def _absent(tau: Tensor) -> tuple[Tensor, Tensor]:
    first, second = stand_ins(tau, (None, None))
    return first, second


_calibrate = registration.Operator("triton_calibrate", _calibrated)
_calibrate.register_fake(_calibrated_fake)


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
    tensors = exact(x, y, phi_x, phi_y, offset)
    rows, stats, _ = _align(*tensors, tau_min, tau_max, weight, beta)
    return rows, named(stats)


class _Align(NamedTuple):
    x: Tensor
    y: Tensor
    phi_x: Tensor | None
    phi_y: Tensor | None
    offset: Tensor | None
    tau_min: float
    tau_max: float
    weight: float
    beta: float


def _align_forward(a: _Align) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, stats, and the factors of each row that the backward pass needs."""
    rows, factors, stats = align_forward(*a)
    return rows, stats, factors


def _align_fake(a: _Align) -> list[Tensor]:
    rows = float32(a.x, a.x.shape[:2])
    return [rows, rows.new_empty(5), rows.new_empty(FACTORS, *rows.shape)]


def _align_backward(a: _Align, needs: list[bool], gradient: Tensor, factors: Tensor) -> list[Tensor | None]:
    grads = align_backward(gradient, factors, *a[:4], (needs[0], needs[1], needs[2], needs[3]))
    of_offset = (gradient * factors[BY_OFFSET]).sum().to(a.offset.dtype) if a.offset is not None and needs[4] else None
    return [*grads, of_offset]


_align = differentiable("triton_align", _Align, _align_forward, _align_fake, _align_backward, saves=(2,))


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
    tensors = (x, y, phi_x, phi_y, offset)
    losses, on, off, *_ = _decorrelate(*tensors, tau_min, tau_max, lambd, beta, needed(*tensors))
    return losses, named(on), named(off)


class _Decorrelate(NamedTuple):
    x: Tensor
    y: Tensor
    phi_x: Tensor | None
    phi_y: Tensor | None
    offset: Tensor | None
    tau_min: float
    tau_max: float
    lambd: float
    beta: float
    needs: list[bool]


def _decorrelate_forward(
    a: _Decorrelate,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Losses, stats on and off the diagonal, and the gradients of each head that are needed."""
    x, y, phi_x, phi_y, offset = a.needs
    losses, on, off, by_x, by_y, by_phi_x, by_phi_y, scores = decorrelate_strips(*a[:9], (x, y, phi_x, phi_y, offset))
    return losses, on, off, by_x, by_y, by_phi_x, by_phi_y, None if scores is None else -scores


def _decorrelate_fake(a: _Decorrelate) -> list[Tensor | None]:
    losses = float32(a.x, a.x.shape[:1])
    like = a.x if a.x.dtype == torch.bfloat16 else losses
    of_tables = [
        like.new_empty(t.shape) if t is not None and need else None for t, need in zip(a[:4], a.needs[:4], strict=True)
    ]
    of_offset = losses.new_empty(losses.shape) if a.needs[4] else None
    return [losses, losses.new_empty(5), losses.new_empty(5), *of_tables, of_offset]


_decorrelate = scaling("triton_decorrelate", _Decorrelate, _decorrelate_forward, _decorrelate_fake)


def exact(*tensors: Tensor | None) -> list[Tensor | None]:
    """`tensors`, in float32 where Triton's interpreter would compute their bfloat16 products wrongly."""
    if INTERPRETED and any(t is not None and t.dtype == torch.bfloat16 for t in tensors):
        return [None if t is None else t.float() for t in tensors]
    return list(tensors)


def float32(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty float32 tensor on the device of `like`."""
    return like.new_empty(shape, dtype=torch.float32)
