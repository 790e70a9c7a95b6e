"""Contrast over all candidates: log Σ exp(s/τ − β·Ω(τ)), or the released mean (Eq. 2.4; NT-Xent and DCL).

Tiles of s and r are formed, used and forgotten, as in flash attention. Forward: a running log-sum-exp per anchor.
Backward: tiles are formed again, once for the rows of the anchors and once for those of the candidates, so each
gradient has one owner and needs no atomics. All passes read the products at one depth and precision, for equal bits
of s: 1/τ would amplify a difference. Few anchors against many candidates are split over the candidates, and the parts
are added in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .common import PARTIALS, pair_terms, store_partial, summarise
from .tile import (
    Rows,
    is_touched,
    load_tile,
    products,
    rows_of,
    skip_of,
    touched_tiles,
    visible,
)


@triton.jit
def _forward(
    anchors, candidates, phi_anchors, phi_candidates, offset, skip, result, tops, partials,
    span, tau_min, tau_span, beta, log_weight, share,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, MEAN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, candidates.rows)
    lanes = tl.arange(0, N)
    shift = 0.0
    if HAS_OFFSET:
        shift = tl.load(offset).to(tl.float32)
    depth = tl.arange(0, DEPTH)
    anchor_tile = load_tile(anchors, head, row, depth)
    phi_tile = anchor_tile
    if ADAPTIVE:
        phi_tile = load_tile(phi_anchors, head, row, depth)
    touched = touched_tiles(skip, row, anchors.rows, begin, N, N)

    total = tl.zeros((M,), tl.float32)
    # Finite, so that a tile without a negative adds exp(−∞) = 0 and not NaN.
    top = tl.full((M,), -3.4e38, tl.float32)
    elements = tl.zeros((M,), tl.float32)
    s_sum = tl.zeros((M,), tl.float32)
    tau_mean = tl.zeros((M,), tl.float32)
    tau_m2 = tl.zeros((M,), tl.float32)
    tau_low = tl.full((M,), float("inf"), tl.float32)
    bounds = tl.zeros((M,), tl.float32)
    for tile in range(tl.cdiv(end - begin, N)):
        column = begin + tile * N + lanes
        other_tile = load_tile(candidates, head, column, depth)
        s = products(anchor_tile, other_tile, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
        r = s
        if ADAPTIVE:
            other_tile = load_tile(phi_candidates, head, column, depth)
            r = products(phi_tile, other_tile, phi_anchors, row, phi_candidates, column, head, DEPTH, WHOLE, PRECISION)
            r -= shift
        value, _, _, tau, bound = pair_terms(s, r, tau_min, tau_span, beta, log_weight, share, ADAPTIVE)
        size = tl.full((M,), 1.0, tl.float32) * N
        low = tau
        if (begin + (tile + 1) * N > end) | is_touched(touched, tile):
            shown = visible(skip, row[:, None], anchors.rows, column[None, :], end)
            size = tl.sum(tl.where(shown, 1.0, 0.0), axis=1)
            s = tl.where(shown, s, 0.0)
            value = tl.where(shown, value, 0.0 if MEAN else float("-inf"))
            if ADAPTIVE:
                low = tl.where(shown, tau, float("inf"))
                tau = tl.where(shown, tau, 0.0)
                bound = tl.where(shown, bound, 0.0)
        if MEAN:
            total += tl.sum(value, axis=1)
        else:
            higher = tl.maximum(top, tl.max(value, axis=1))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher[:, None]), axis=1)
            top = higher
        s_sum += tl.sum(s, axis=1)
        together = elements + size
        if ADAPTIVE:
            # Mean and spread of the tile joined to those so far (Chan et al.): no difference of large sums.
            mean = tl.sum(tau, axis=1) / tl.maximum(size, 1.0)
            deviation = tl.where(low < float("inf"), tau - mean[:, None], 0.0)
            delta = mean - tau_mean
            ratio = size / tl.maximum(together, 1.0)
            tau_m2 += tl.sum(deviation * deviation, axis=1) + delta * delta * elements * ratio
            tau_mean += delta * ratio
            tau_low = tl.minimum(tau_low, tl.min(low, axis=1))
            bounds += tl.sum(bound, axis=1)
        elements = together
    if not ADAPTIVE:
        tau_mean += tau_min
        tau_low = tl.where(elements > 0, tau_min, tau_low)
    parts = tl.num_programs(1) * tl.num_programs(2) * anchors.rows
    at = (tl.program_id(1) * tl.num_programs(2) + head).to(tl.int64) * anchors.rows + row
    inside = row < anchors.rows
    tl.store(result + at, total, inside)
    if not MEAN:
        tl.store(tops + at, top, inside)
    store_partial(partials, at, parts, inside, elements, s_sum, tau_mean * elements, tau_m2, tau_low, bounds)


@triton.jit
def _gradient(
    gradient, top, own, other, phi_own, phi_other, offset, skip, grad_own, grad_phi, grad_score,
    span, tau_min, tau_span, beta, log_weight, share,
    BY_COLUMN: tl.constexpr, ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, MEAN: tl.constexpr,
    X: tl.constexpr, PHI: tl.constexpr, CHUNKS: tl.constexpr, OUT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, OUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """OUT columns of the gradients of M rows `own`, and the sum of each row's slopes by r, over a span of `other`.

    BY_COLUMN: `own` are the candidates and `other` the anchors. Of a log-sum-exp, `gradient` is divided by the sum of
    exp(value − top): for large values log Σ exp itself is rounded, and its exponential far off.
    """
    head = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    split = tl.program_id(1) // CHUNKS
    chunk = tl.program_id(1) % CHUNKS
    out_lanes = chunk * OUT + tl.arange(0, OUT)
    begin = split * span
    end = tl.minimum(begin + span, other.rows)
    shift = 0.0
    if HAS_OFFSET:
        shift = tl.load(offset).to(tl.float32)
    depth = tl.arange(0, DEPTH)
    own_tile = load_tile(own, head, row, depth)
    phi_tile = own_tile
    if ADAPTIVE:
        phi_tile = load_tile(phi_own, head, row, depth)
    inside = row < own.rows
    if not BY_COLUMN:
        flat = head.to(tl.int64) * own.rows + row
        g = tl.load(gradient + flat, inside, other=0.0)[:, None]
        highest = tl.load(top + flat, inside, other=float("inf"))[:, None]
    out = tl.zeros((M, OUT), tl.float32)
    phi_out = tl.zeros((M, OUT), tl.float32)
    score = tl.zeros((M,), tl.float32)
    for start in range(begin, end, N):
        index = start + tl.arange(0, N)
        if BY_COLUMN:
            flat = head.to(tl.int64) * other.rows + index
            g = tl.load(gradient + flat, index < other.rows, other=0.0)[None, :]
            highest = tl.load(top + flat, index < other.rows, other=float("inf"))[None, :]
            shown = visible(skip, index[None, :], other.rows, row[:, None], own.rows)
        else:
            shown = visible(skip, row[:, None], own.rows, index[None, :], other.rows)
        other_tile = load_tile(other, head, index, depth)
        s = products(own_tile, other_tile, own, row, other, index, head, DEPTH, WHOLE, PRECISION)
        r = s
        if ADAPTIVE:
            phi_other_tile = load_tile(phi_other, head, index, depth)
            r = products(phi_tile, phi_other_tile, phi_own, row, phi_other, index, head, DEPTH, WHOLE, PRECISION)
            r -= shift
        value, by_s, by_r, _, _ = pair_terms(s, r, tau_min, tau_span, beta, log_weight, share, ADAPTIVE)
        # No value is above the highest, but for rounding, which a small τ would raise to infinity.
        weight = tl.where(shown, g if MEAN else g * tl.exp(tl.minimum(value - highest, 0.0)), 0.0)
        if X:
            if not WHOLE:
                other_tile = load_tile(other, head, index, out_lanes)
            out = _accumulate(weight * by_s, other_tile, out, OUT_PRECISION)
        if PHI:
            if not WHOLE:
                phi_other_tile = load_tile(phi_other, head, index, out_lanes)
            phi_out = _accumulate(weight * by_r, phi_other_tile, phi_out, OUT_PRECISION)
            if HAS_OFFSET:
                score += tl.sum(weight * by_r, axis=1)
    at = (split * tl.num_programs(2) + head).to(tl.int64) * own.rows + row
    if X:
        place = grad_own + at[:, None] * own.width + out_lanes[None, :]
        tl.store(place, out.to(grad_own.dtype.element_ty), inside[:, None] & (out_lanes < own.width)[None, :])
    if PHI:
        place = grad_phi + at[:, None] * phi_own.width + out_lanes[None, :]
        mask = inside[:, None] & (out_lanes < phi_own.width)[None, :]
        tl.store(place, phi_out.to(grad_phi.dtype.element_ty), mask)
        if HAS_OFFSET:
            tl.store(grad_score + at, score, inside & (chunk == 0))


@triton.jit
def _accumulate(weights, table, result, PRECISION: tl.constexpr):
    """result + weights·table, in the dtype of the table; float16 as tf32, which holds it and any weight."""
    if table.dtype == tl.bfloat16:
        return tl.dot(weights.to(tl.bfloat16), table, result, out_dtype=tl.float32)
    else:
        return tl.dot(weights, table.to(tl.float32), result, input_precision=PRECISION, out_dtype=tl.float32)


def dense_forward(
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    mean: bool,
    tau_min: float,
    tau_max: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Negative term of every anchor over all candidates but the skipped ones.

    Args:
        anchors, candidates: (C, A, d) and (C, B, d), any strides.
        phi_anchors, phi_candidates: (C, A, m) and (C, B, m), or None for a constant temperature.
        offset: 0-dim tensor subtracted from every r, or None.
        skip: (A, S) int64, distinct columns that are no negatives of the anchor, or None.
        mean: the released form, mean(s/τ) − β·Σ(log τ + 1/τ); else log Σ exp(s/τ − β·Ω(τ)).
        tau_min, tau_max, beta: range of τ and weight of its regulariser.

    Returns:
        rows (C, A), stats (5,) of `common.summarise` and shares (2, C, A) for `dense_backward`, float32: the highest
        exponent `top` of each row and Σ exp(exponent − top). Of a mean there are none: (0,).
    """
    heads, rows, dim = anchors.shape
    columns = candidates.shape[1]
    inputs = _operands(anchors, candidates, phi_anchors, phi_candidates)
    tiling = _forward_tiling(anchors, max(dim, inputs[2].width), phi_anchors is not None)
    blocks = triton.cdiv(rows, int(tiling["M"]))
    span, splits = _split(blocks * heads, columns, int(tiling["N"]))
    result = torch.empty(splits, heads, rows, device=anchors.device)
    tops = result if mean else torch.empty_like(result)
    partials = torch.empty(PARTIALS, splits * heads * rows, device=anchors.device)
    _forward[blocks, splits, heads](
        *inputs,
        result if offset is None else offset,
        skip_of(skip, result),
        result,
        tops,
        partials,
        span,
        *_settings(mean, columns - (0 if skip is None else skip.shape[1]), tau_min, tau_max, beta, dim),
        ADAPTIVE=phi_anchors is not None,
        HAS_OFFSET=offset is not None,
        MEAN=mean,
        **tiling,
    )
    stats = summarise(partials)
    if mean:
        return result.sum(0), stats, result.new_empty(0)
    top = tops.amax(0)
    total = (result * (tops - top).exp()).sum(0)
    return top + total.log(), stats, torch.stack([top, total])


def dense_backward(
    gradient: Tensor,
    shares: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    mean: bool,
    tau_min: float,
    tau_max: float,
    beta: float,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """Gradients of anchors, candidates, φ(anchors) and φ(candidates), each only if `needs` says so.

    Args:
        gradient: (C, A), of the rows.
        shares: of `dense_forward`.
        needs: which of the four gradients are wanted.

        The rest is as in `dense_forward`.

    Returns:
        The gradients, and Σ gradient·∂rows/∂r (0-dim; only with an offset and the third need, else of no meaning).
    """
    top, gradient = (gradient, gradient.contiguous()) if mean else (shares[0], gradient / shares[1])
    count = candidates.shape[1] - (0 if skip is None else skip.shape[1])
    settings = _settings(mean, count, tau_min, tau_max, beta, anchors.shape[2])
    inputs = _operands(anchors, candidates, phi_anchors, phi_candidates)
    flags = {"ADAPTIVE": phi_anchors is not None, "HAS_OFFSET": offset is not None, "MEAN": mean}
    shared = (gradient, top, offset, skip, settings, flags)
    of_anchors = of_phi_anchors = of_candidates = of_phi_candidates = None
    score = gradient.new_empty(())
    if needs[0] or needs[2]:
        of_anchors, of_phi_anchors, score = _gradients(inputs, needs[0], needs[2], *shared, by_column=False)
    if needs[1] or needs[3]:
        turned = (inputs[1], inputs[0], inputs[3], inputs[2])
        of_candidates, of_phi_candidates, _ = _gradients(turned, needs[1], needs[3], *shared, by_column=True)
    return of_anchors, of_candidates, of_phi_anchors, of_phi_candidates, score


def _gradients(
    inputs: tuple[Rows, Rows, Rows, Rows],
    x: bool,
    phi: bool,
    gradient: Tensor,
    top: Tensor,
    offset: Tensor | None,
    skip: Tensor | None,
    settings: tuple[float, ...],
    flags: dict[str, bool],
    by_column: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Launch `_gradient` for the rows inputs[0]; returns its gradient, φ's, and the sum of scores (with an offset)."""
    own, other, phi_own, _ = inputs
    heads = gradient.shape[0]
    width = max(own.width, phi_own.width)
    tiling = _gradient_tiling(own.base, width, flags["ADAPTIVE"])
    chunks = triton.cdiv(width, int(tiling["OUT"]))
    blocks = triton.cdiv(own.rows, int(tiling["M"]))
    span, splits = _split(blocks * heads * chunks, other.rows, int(tiling["N"]))
    dtype = own.base.dtype if splits == 1 else torch.float32

    def output(rows: Rows, wanted: bool) -> Tensor | None:
        shape = (splits, heads, rows.rows, rows.width)
        return torch.empty(shape, dtype=dtype, device=gradient.device) if wanted else None

    grads = output(own, x), output(phi_own, phi)
    scores = torch.empty(splits, heads, own.rows, device=gradient.device)
    _gradient[blocks, splits * chunks, heads](
        gradient,
        top,
        *inputs,
        scores if offset is None else offset,
        skip_of(skip, scores),
        *(scores if grad is None else grad for grad in grads),
        scores,
        span,
        *settings,
        BY_COLUMN=by_column,
        **flags,
        X=x,
        PHI=phi,
        CHUNKS=chunks,
        **tiling,
    )
    summed = [None if grad is None else grad[0] if splits == 1 else grad.sum(0).to(own.base.dtype) for grad in grads]
    return summed[0], summed[1], scores if offset is None else scores.sum()


def _operands(
    anchors: Tensor, candidates: Tensor, phi_anchors: Tensor | None, phi_candidates: Tensor | None
) -> tuple[Rows, Rows, Rows, Rows]:
    return (
        rows_of(anchors),
        rows_of(candidates),
        rows_of(anchors if phi_anchors is None else phi_anchors),
        rows_of(candidates if phi_candidates is None else phi_candidates),
    )


def _settings(mean: bool, count: int, tau_min: float, tau_max: float, beta: float, dim: int) -> tuple[float, ...]:
    """tau_min, tau_span, beta, log_weight and share, as the kernels take them."""
    return tau_min, tau_max - tau_min, beta, 1.0 if mean else 0.5 * dim, 1.0 / count if mean else 1.0


def _split(programs: int, columns: int, tile: int) -> tuple[int, int]:
    """(columns of one part, parts): enough parts for a grid of 256, none shorter than four tiles."""
    # A process whose own batch is empty has no programs or no columns, and still takes part.
    parts = max(1, min(triton.cdiv(256, max(1, programs)), columns // (4 * tile)))
    span = max(1, triton.cdiv(triton.cdiv(columns, parts), tile)) * tile
    return span, max(1, triton.cdiv(columns, span))


def _forward_tiling(x: Tensor, width: int, adaptive: bool) -> dict[str, int | bool | str]:
    """Launch parameters of `_forward`: the largest tiles whose statistics fit in registers."""
    if x.dtype == torch.float32:
        shape = {"M": 64, "N": 32, "DEPTH": 32, "WHOLE": False}
    elif width > 128:
        shape = {"M": 64, "N": 32, "DEPTH": 64, "WHOLE": False}
    elif adaptive:
        shape = {"M": 128, "N": 32, "DEPTH": 64 if width <= 64 else 128, "WHOLE": True}
    else:
        rows = 64 if common.capability(x) >= (10, 0) else 128
        shape = {"M": rows, "N": 64, "DEPTH": 64 if width <= 64 else 128, "WHOLE": True}
    return {**shape, "PRECISION": common.dot_precision(x), "num_warps": 8, "num_stages": 3}


def _gradient_tiling(x: Tensor, width: int, adaptive: bool) -> dict[str, int | bool | str]:
    """Launch parameters of `_gradient`: two sums of M × OUT and two tiles of M × N must fit in registers."""
    recent = common.capability(x) >= (9, 0)
    precision = common.dot_precision(x)
    warps = 8
    if x.dtype == torch.float32:
        shape = {"M": 64 if recent else 32, "N": 16 if recent else 32, "DEPTH": 32, "WHOLE": False, "OUT": 64}
        warps = 4 if recent else 8
    else:
        half = x.dtype == torch.float16  # its second products are tf32, which take twice the registers
        columns = 64
        if adaptive:
            columns = 16 if recent and (half or width > 128) else 32
        whole = width <= 128 and (recent or not half)
        shape = {
            "M": 128 if recent and (whole or not adaptive) else 64,
            "N": columns,
            "DEPTH": 128 if whole and width > 64 else 64,
            "WHOLE": whole,
            "OUT": 64 if width <= 64 else 128,
        }
    out_precision = "tf32" if x.dtype == torch.float16 else precision
    launch = {"num_warps": warps, "num_stages": 3 if recent else 2, "maxnreg": 255}
    return {**shape, **launch, "PRECISION": precision, "OUT_PRECISION": out_precision}
