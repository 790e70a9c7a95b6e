"""The operators on the CPU by the C++ engine; meaning and signatures as in `reference`, arguments checked in `ops`.

Exact, with the reference's tie rule, and with the same bits for any number of threads: matrix products are
made block by block, one thread each, by the BLAS that torch carries, and every sum has one order. Nothing of
the size anchors × candidates is stored. float32 and float64; strides are free (rows that BLAS cannot read are
copied).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native, reference
from ..reference import Chosen, Stats
from ..reference import calibrate as calibrate
from .engine import Gradients, Tables, address, fake_by_head, summary, temperature, whole, width
from .registration import differentiable, scaling
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
    if tau is not None:
        return reference.contrast(
            anchors, candidates, None, None, None, skip, tau_min=tau_min, tau_max=tau_max, negatives=negatives,
            top_k=top_k, beta=beta, extra=extra, tau=tau, chosen=chosen,
        )  # fmt: skip
    range_and_beta = _range_and_beta(tau_min, tau_max, beta, phi_anchors)
    available = candidates.shape[1] - width(skip)
    top_k = available if negatives == "softmax" or top_k is None else min(top_k, available)
    tensors = (anchors, candidates, phi_anchors, phi_candidates, None if phi_anchors is None else offset)
    if negatives == "topk_mean" or top_k < available:
        save = any(needed(*tensors))
        rows, stats, *_ = _contrast_topk(*tensors, skip, negatives == "topk_mean", top_k, *range_and_beta, save)
        if extra is not None:
            rows = torch.logaddexp(rows, extra)
    else:
        rows, stats, *_ = _contrast_softmax(*tensors, skip, extra, *range_and_beta, needed(*tensors))
    return rows, named(stats)


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


def _range_and_beta(tau_min: float, tau_max: float, beta: float, phi: Tensor | None) -> tuple[float, float, float]:
    """tau_min, tau_span and β; a constant τ has tau_span = β = 0."""
    return (tau_min, 0.0, 0.0) if phi is None else (tau_min, tau_max - tau_min, beta)


class _TopK(NamedTuple):
    anchors: Tensor
    candidates: Tensor
    phi_anchors: Tensor | None
    phi_candidates: Tensor | None
    offset: Tensor | None
    skip: Tensor | None
    mean: bool
    top_k: int
    tau_min: float
    tau_span: float
    beta: float
    save: bool


def _topk_call(a: _TopK) -> tuple[Tables, Tensor | None, _native.Contrast]:
    """The tables and skip, to be held while the engine reads them, and its arguments."""
    form = _native.Form.topk_mean if a.mean else _native.Form.topk_softmax
    return _contrast_call(a, form, a.top_k)


def _topk_forward(a: _TopK) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Rows, statistics and, if `save`, the columns chosen for each row and the slopes of the row by their s and r."""
    rows = a.anchors.new_empty(a.anchors.shape[:2])
    chosen = slope_s = slope_r = None
    if a.save:
        chosen = torch.empty(*rows.shape, a.top_k, dtype=torch.int32)
        slope_s = rows.new_empty(chosen.shape)
        slope_r = None if a.phi_anchors is None else torch.empty_like(slope_s)
    tables, _skip, call = _topk_call(a)
    sums = _native.contrast_topk_forward(
        tables.is_double, call, address(rows), address(chosen), address(slope_s), address(slope_r)
    )
    return rows, summary(sums, a.tau_min, rows), chosen, slope_s, slope_r


def _topk_fake(a: _TopK) -> list[Tensor | None]:
    rows = a.anchors.new_empty(a.anchors.shape[:2])
    made: list[Tensor | None] = [rows, rows.new_empty(5)]
    if not a.save:
        return [*made, None, None, None]
    pairs = (*rows.shape, a.top_k)
    slope_r = None if a.phi_anchors is None else rows.new_empty(pairs)
    return [*made, rows.new_empty(pairs, dtype=torch.int32), rows.new_empty(pairs), slope_r]


def _topk_backward(
    a: _TopK, needs: list[bool], gradient: Tensor, chosen: Tensor, slope_s: Tensor, slope_r: Tensor | None
) -> list[Tensor | None]:
    made = Gradients(a[:5], needs)
    gradient = gradient.contiguous()
    tables, _skip, call = _topk_call(a)
    addresses = address(gradient), address(chosen), address(slope_s), address(slope_r)
    _native.contrast_topk_backward(tables.is_double, call, *addresses, *made.arguments())
    return [*made.all(), None]


_contrast_topk = differentiable(
    "native_contrast_topk", _TopK, _topk_forward, _topk_fake, _topk_backward, saves=(2, 3, 4)
)


class _Softmax(NamedTuple):
    anchors: Tensor
    candidates: Tensor
    phi_anchors: Tensor | None
    phi_candidates: Tensor | None
    offset: Tensor | None
    skip: Tensor | None
    extra: Tensor | None
    tau_min: float
    tau_span: float
    beta: float
    needs: list[bool]


def _softmax_pass(
    a: _Softmax, gradient: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, tuple[float, ...], Gradients]:
    """Rows, the sums for statistics, and the gradients of Σ gradient·rows (None: of Σ rows)."""
    rows = a.anchors.new_empty(a.anchors.shape[:2])
    extra = whole(a.extra)
    made = Gradients(a[:5], needs)
    tables, _skip, call = _contrast_call(a, _native.Form.softmax, a.candidates.shape[1] - width(a.skip))
    sums = _native.contrast_softmax(
        tables.is_double, call, address(gradient), address(extra), address(rows), *made.arguments()
    )
    return rows, sums, made


def _softmax_forward(
    a: _Softmax,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Rows, statistics and the gradients of Σ rows that are needed, made while each row's s and r are at hand.

    A loss that averages over anchors gives all of a head one gradient, so those gradients need only be scaled. Any
    other gradient costs a second pass.
    """
    rows, sums, made = _softmax_pass(a, None, a.needs)
    return rows, summary(sums, a.tau_min, rows), *made.by_head()


def _softmax_fake(a: _Softmax) -> list[Tensor | None]:
    return [a.anchors.new_empty(a.anchors.shape[:2]), a.anchors.new_empty(5), *fake_by_head(a[:5], a.needs)]


def _softmax_backward(
    a: _Softmax, needs: list[bool], gradient: Tensor, rows: Tensor, *of_sum: Tensor | None
) -> list[Tensor | None]:
    """From the gradients of Σ rows."""
    of_extra = None if a.extra is None or not needs[6] else gradient * (a.extra - rows).exp()
    of_tables = masked(of_sum, needs[:5])
    by_head = gradient[:, :1]
    if torch.equal(gradient, by_head.expand_as(gradient)):
        return [*scaled(of_tables, by_head[:, 0], 5 * (gradient.dtype,)), None, of_extra]
    # What belongs to an anchor is scaled with it; what sums over anchors is made anew.
    anew = [False, needs[1], False, *needs[3:5]]
    grads: list[Tensor | None] = [None] * 5
    if any(anew):
        grads = _softmax_pass(a, gradient.contiguous(), anew)[2].all()
    for i in (0, 2):
        table = of_tables[i]
        grads[i] = None if table is None else table * gradient[..., None]
    return [*grads, None, of_extra]


_contrast_softmax = differentiable(
    "native_contrast_softmax", _Softmax, _softmax_forward, _softmax_fake, _softmax_backward, saves=(0, 2, 3, 4, 5, 6)
)


def _contrast_call(
    a: _TopK | _Softmax, form: _native.Form, top_k: int
) -> tuple[Tables, Tensor | None, _native.Contrast]:
    tables = Tables(*a[:4])
    skip = whole(a.skip)
    heads, anchors, dim = tables.shape
    call = _native.Contrast(
        (heads, anchors, tables.candidates, dim, tables.phi_width, top_k, width(skip)),
        form,
        temperature(a.tau_min, a.tau_span, a.beta, a.offset),
        tables.strided,
        address(skip),
        torch.get_num_threads(),
    )
    return tables, skip, call


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
