"""The operators on the CPU by the C++ engine; meaning and signatures as in `reference`, arguments checked in `ops`.

Exact, with the reference's tie rule, and with the same bits for any number of threads: matrix products are
made block by block, one thread each, by the BLAS that torch carries, and every sum has one order. Nothing of
the size anchors × candidates is stored. float32 and float64; strides are free (rows that BLAS cannot read are
copied).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from ..reference import Chosen, Stats
from .engine import Call, Gradients, Tables, address, fake_by_head, summary, temperature, whole, width
from .registration import differentiable, scaling, underived
from .tensors import masked, named, needed, scaled


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
    """`amcl_fast.reference.contrast` in C++."""
    range_and_beta = _range_and_beta(tau_min, tau_max, beta, phi_anchors if tau is None else tau)
    available = candidates.shape[1] - width(skip)
    top_k = _count(candidates, skip, negatives, top_k)
    tensors = (anchors, candidates, phi_anchors, phi_candidates, None if phi_anchors is None else offset)
    if negatives == "topk_mean" or top_k < available or chosen is not None:
        save = any(needed(*tensors, tau))
        known = (None, None) if chosen is None else chosen
        mean = negatives == "topk_mean"
        rows, stats, *_ = _contrast_topk(*tensors, skip, tau, *known, mean, top_k, *range_and_beta, save)
        if extra is not None:
            rows = torch.logaddexp(rows, extra)
    else:
        rows, stats, *_ = _contrast_softmax(*tensors, skip, extra, tau, *range_and_beta, needed(*tensors, tau))
    return rows, named(stats)


@torch.no_grad()
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
    """`amcl_fast.reference.calibrate` in C++; T lies in the order of columns."""
    top_k = _count(candidates, skip, negatives, top_k)
    # What the entropy lacks to that of equal shares.
    deficit = math.log(top_k) - math.log(max(1.0, perplexity * top_k))
    tau, *known = _calibrate(anchors, candidates, skip, negatives == "softmax", top_k, tau_min, tau_max, deficit)
    return tau, None if negatives == "softmax" else Chosen(*known)


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
    """`amcl_fast.reference.align` in C++."""
    range_and_beta = _range_and_beta(tau_min, tau_max, beta, phi_x)
    rows, stats, _ = _align(x, y, phi_x, phi_y, None if phi_x is None else offset, weight, *range_and_beta)
    return rows, named(stats)


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
    """`amcl_fast.reference.decorrelate` in C++."""
    range_and_beta = _range_and_beta(tau_min, tau_max, beta, phi_x)
    tensors = (x, y, phi_x, phi_y, None if phi_x is None else offset)
    losses, on, off, *_ = _decorrelate(*tensors, lambd, *range_and_beta, needed(*tensors))
    return losses, named(on), named(off)


def _range_and_beta(tau_min: float, tau_max: float, beta: float, varies: Tensor | None) -> tuple[float, float, float]:
    """tau_min, tau_span and β; a constant τ, of which nothing `varies`, has tau_span = β = 0."""
    return (tau_min, 0.0, 0.0) if varies is None else (tau_min, tau_max - tau_min, beta)


def _count(candidates: Tensor, skip: Tensor | None, negatives: str, top_k: int | None) -> int:
    """How many negatives of an anchor count."""
    available = candidates.shape[1] - width(skip)
    return available if negatives == "softmax" or top_k is None else min(top_k, available)


class _TopK(NamedTuple):
    anchors: Tensor
    candidates: Tensor
    phi_anchors: Tensor | None
    phi_candidates: Tensor | None
    offset: Tensor | None
    skip: Tensor | None
    tau: Tensor | None
    similarities: Tensor | None
    columns: Tensor | None
    mean: bool
    top_k: int
    tau_min: float
    tau_span: float
    beta: float
    save: bool


def _topk_call(a: _TopK) -> Call:
    form = _native.Form.topk_mean if a.mean else _native.Form.topk_softmax
    settings = temperature(a.tau_min, a.tau_span, a.beta, a.offset)
    return Call(a[:4], a.skip, form, a.top_k, settings, a.tau, a.similarities, a.columns)


def _topk_forward(a: _TopK) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Rows, statistics and, if `save`, what the backward pass needs of each row.

    That is the columns chosen for it, unless they are known, and its slopes by their s and r, and by τ.
    """
    rows, _, chosen, slope_s, slope_r, slope_tau = _topk_fake(a)
    call = _topk_call(a)
    addresses = address(rows), address(chosen), address(slope_s), address(slope_r), address(slope_tau)
    sums = _native.contrast_topk_forward(call.is_double, call.arguments, *addresses)
    return rows, summary(sums, a.tau_min, rows), chosen, slope_s, slope_r, slope_tau


def _topk_fake(a: _TopK) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    rows = a.anchors.new_empty(a.anchors.shape[:2])
    pairs = (*rows.shape, a.top_k)
    return (
        rows,
        rows.new_empty(5),
        rows.new_empty(pairs, dtype=torch.int32) if a.save and a.columns is None else None,
        rows.new_empty(pairs) if a.save else None,
        rows.new_empty(pairs) if a.save and a.phi_anchors is not None else None,
        rows.new_empty(rows.shape) if a.save and a.tau is not None else None,
    )


def _topk_backward(
    a: _TopK,
    needs: list[bool],
    gradient: Tensor,
    chosen: Tensor | None,
    slope_s: Tensor,
    slope_r: Tensor | None,
    slope_tau: Tensor | None,
) -> list[Tensor | None]:
    made = Gradients(a[:5], needs)
    of_tau = gradient * slope_tau if needs[6] and slope_tau is not None else None
    if any(needs[:5]):
        gradient, columns = gradient.contiguous(), whole(a.columns) if chosen is None else chosen
        call = _topk_call(a)
        addresses = address(gradient), address(columns), address(slope_s), address(slope_r)
        _native.contrast_topk_backward(call.is_double, call.arguments, *addresses, *made.arguments())
    return [*made.all(), None, of_tau, None, None]


_contrast_topk = differentiable(
    "native_contrast_topk", _TopK, _topk_forward, _topk_fake, _topk_backward, saves=(2, 3, 4, 5)
)


class _Softmax(NamedTuple):
    anchors: Tensor
    candidates: Tensor
    phi_anchors: Tensor | None
    phi_candidates: Tensor | None
    offset: Tensor | None
    skip: Tensor | None
    extra: Tensor | None
    tau: Tensor | None
    tau_min: float
    tau_span: float
    beta: float
    needs: list[bool]


def _softmax_pass(
    a: _Softmax, gradient: Tensor | None, needs: Sequence[bool], slope_tau: Tensor | None
) -> tuple[Tensor, tuple[float, ...], Gradients]:
    """Rows, the sums for statistics, and the gradients of Σ gradient·rows (None: of Σ rows)."""
    rows = a.anchors.new_empty(a.anchors.shape[:2])
    extra = whole(a.extra)
    made = Gradients(a[:5], needs)
    settings = temperature(a.tau_min, a.tau_span, a.beta, a.offset)
    call = Call(a[:4], a.skip, _native.Form.softmax, a.candidates.shape[1] - width(a.skip), settings, a.tau)
    addresses = address(gradient), address(extra), address(rows), address(slope_tau)
    sums = _native.contrast_softmax(call.is_double, call.arguments, *addresses, *made.arguments())
    return rows, sums, made


def _softmax_forward(
    a: _Softmax,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Rows, statistics and the gradients of Σ rows that are needed, made while each row's s and r are at hand.

    A loss that averages over anchors gives all of a head one gradient, so those gradients need only be scaled. Any
    other gradient costs a second pass.
    """
    slope_tau = a.anchors.new_empty(a.anchors.shape[:2]) if a.needs[5] else None
    rows, sums, made = _softmax_pass(a, None, a.needs, slope_tau)
    return rows, summary(sums, a.tau_min, rows), *made.by_head(), slope_tau


def _softmax_fake(a: _Softmax) -> list[Tensor | None]:
    rows = a.anchors.new_empty(a.anchors.shape[:2])
    slope_tau = rows.new_empty(rows.shape) if a.needs[5] else None
    return [rows, rows.new_empty(5), *fake_by_head(a[:5], a.needs), slope_tau]


def _softmax_backward(
    a: _Softmax, needs: list[bool], gradient: Tensor, rows: Tensor, *saved: Tensor | None
) -> list[Tensor | None]:
    """From the gradients of Σ rows, and the slopes of rows by their τ."""
    *of_sum, slope_tau = saved
    of_tau = gradient * slope_tau if needs[7] and slope_tau is not None else None
    of_extra = None if a.extra is None or not needs[6] else gradient * (a.extra - rows).exp()
    of_tables = masked(of_sum, needs[:5])
    by_head = gradient[:, :1]
    if torch.equal(gradient, by_head.expand_as(gradient)):
        return [*scaled(of_tables, by_head[:, 0], 5 * (gradient.dtype,)), None, of_extra, of_tau]
    # What belongs to an anchor is scaled with it; what sums over anchors is made anew.
    anew = [False, needs[1], False, *needs[3:5]]
    grads: list[Tensor | None] = [None] * 5
    if any(anew):
        grads = _softmax_pass(a, gradient.contiguous(), anew, None)[2].all()
    for i in (0, 2):
        table = of_tables[i]
        grads[i] = None if table is None else table * gradient[..., None]
    return [*grads, None, of_extra, of_tau]


_contrast_softmax = differentiable(
    "native_contrast_softmax",
    _Softmax,
    _softmax_forward,
    _softmax_fake,
    _softmax_backward,
    saves=(0, 2, 3, 4, 5, 6, 7),
)


class _Calibrate(NamedTuple):
    anchors: Tensor
    candidates: Tensor
    skip: Tensor | None
    all: bool
    top_k: int
    tau_min: float
    tau_max: float
    deficit: float


def _calibrate_forward(a: _Calibrate) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """τ of each anchor and, but for all negatives, similarities and columns of its hardest."""
    made = _calibrate_fake(a)
    form = _native.Form.softmax if a.all else _native.Form.topk_softmax
    call = Call((a.anchors, a.candidates, None, None), a.skip, form, a.top_k, (a.tau_min, 0.0, 0.0, 0.0))
    _native.calibrate(call.is_double, call.arguments, a.tau_max, a.deficit, *map(address, made))
    return made


def _calibrate_fake(a: _Calibrate) -> tuple[Tensor, Tensor | None, Tensor | None]:
    tau = a.anchors.new_empty(a.anchors.shape[:2])
    pairs = (*tau.shape, a.top_k)
    return (tau, None, None) if a.all else (tau, tau.new_empty(pairs), tau.new_empty(pairs, dtype=torch.int32))


_calibrate = underived("native_calibrate", _Calibrate, _calibrate_forward, _calibrate_fake)


class _Align(NamedTuple):
    x: Tensor
    y: Tensor
    phi_x: Tensor | None
    phi_y: Tensor | None
    offset: Tensor | None
    weight: float
    tau_min: float
    tau_span: float
    beta: float


def _align_call(a: _Align) -> tuple[Tables, _native.Align]:
    tables = Tables(*a[:4])
    call = _native.Align(
        (*tables.shape, tables.phi_width),
        temperature(a.tau_min, a.tau_span, a.beta, a.offset),
        a.weight,
        tables.strided,
        torch.get_num_threads(),
    )
    return tables, call


def _align_forward(a: _Align) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, statistics, and what the backward pass needs of each row."""
    tables, call = _align_call(a)
    rows = a.x.new_empty(a.x.shape[:2])
    factors = rows.new_empty(*rows.shape, _native.ALIGN_FACTORS)
    sums = _native.align_forward(tables.is_double, call, address(rows), address(factors))
    return rows, summary(sums, a.tau_min, rows), factors


def _align_fake(a: _Align) -> list[Tensor]:
    rows = a.x.new_empty(a.x.shape[:2])
    return [rows, rows.new_empty(5), rows.new_empty(*rows.shape, _native.ALIGN_FACTORS)]


def _align_backward(a: _Align, needs: list[bool], gradient: Tensor, factors: Tensor) -> list[Tensor | None]:
    made = Gradients(a[:5], needs)
    gradient = gradient.contiguous()
    tables, call = _align_call(a)
    _native.align_backward(tables.is_double, call, address(gradient), address(factors), *made.arguments())
    return made.all()


_align = differentiable("native_align", _Align, _align_forward, _align_fake, _align_backward, saves=(2,))


class _Decorrelate(NamedTuple):
    x: Tensor
    y: Tensor
    phi_x: Tensor | None
    phi_y: Tensor | None
    offset: Tensor | None
    lambd: float
    tau_min: float
    tau_span: float
    beta: float
    needs: list[bool]


def _decorrelate_forward(
    a: _Decorrelate,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Loss of each head, statistics on and off the diagonal, and the gradients of each head that are needed."""
    tables = Tables(*a[:4])
    made = Gradients(a[:5], a.needs)
    losses = torch.empty(a.x.shape[0], dtype=torch.float64)
    on, off = _native.decorrelate(
        tables.is_double,
        (*tables.shape, tables.phi_width),
        temperature(a.tau_min, a.tau_span, a.beta, a.offset),
        a.lambd,
        tables.strided,
        torch.get_num_threads(),
        address(losses),
        *made.arguments(),
    )
    return losses.to(a.x.dtype), summary(on, a.tau_min, a.x), summary(off, a.tau_min, a.x), *made.by_head()


def _decorrelate_fake(a: _Decorrelate) -> list[Tensor | None]:
    return [a.x.new_empty(a.x.shape[0]), a.x.new_empty(5), a.x.new_empty(5), *fake_by_head(a[:5], a.needs)]


_decorrelate = scaling("native_decorrelate", _Decorrelate, _decorrelate_forward, _decorrelate_fake)
