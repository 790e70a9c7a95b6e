"""The value of every anchor over all candidates, and the summary of s and τ."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import common, tuning
from ..common import FAITHFUL, LN2, PARTIALS, joined, near_bound, pair_terms, store_partial, summary
from ..launch import blocks, launched
from ..tile import is_touched, load_tile, products, skip_of, touched_tiles
from .call import key_of, many_or_few, operands, settings_of, split_of, temperatures_of, without

# Columns of a row of a tile that one thread holds are 8 apart, in pairs: four threads share a row, and each keeps sums
# of its own, so that no tile waits for the others. A tile whose layout is another gives the same sums, only slower.
LANES = tl.constexpr(4)


@triton.jit
def _by_lanes(x):
    """(M, N) as (M, N/8, 4, 2)."""
    return tl.reshape(x, (x.shape[0], x.shape[1] // (2 * LANES), LANES, 2))


@triton.jit
def _lane_sums(x):
    """(M, N/8, 4, 2) → (M, 4)."""
    return tl.sum(tl.sum(x, axis=3), axis=1)


@triton.jit
def _with_mean(tau, hidden, size):
    """τ, where `hidden` the mean of the others of its lane, which neither moves it nor adds to the squares; nor, unless
    there are none, to the minimum.
    """
    mean = _lane_sums(_by_lanes(tl.where(hidden, 0.0, tau))) * common.reciprocal(tl.maximum(size, 1.0))
    mean = tl.broadcast_to(mean[:, None, :, None], (tau.shape[0], tau.shape[1] // (2 * LANES), LANES, 2))
    return tl.where(hidden, tl.reshape(mean, (tau.shape[0], tau.shape[1])), tau)


@triton.jit
def _spread(tau, tau_mean, tau_m2, tau_lowest, elements, size, together):
    """Mean, spread and minimum of a tile joined to those so far (Chan et al.): no difference of large sums."""
    width: tl.constexpr = tau.shape[1]
    tau = _by_lanes(tau)
    mean = _lane_sums(tau) * (LANES / width)
    deviation = tau - mean[:, None, :, None]
    delta = mean - tau_mean
    ratio = size * common.reciprocal(tl.maximum(together, 1.0))
    tau_m2 += tl.fma(delta * delta, elements * ratio, _lane_sums(deviation * deviation))
    tau_mean = tl.fma(delta, ratio, tau_mean)
    lowest = tl.min(tl.min(tau, axis=3), axis=1)
    return tau_mean, tau_m2, tl.where(size > 0, tl.minimum(tau_lowest, lowest), tau_lowest)


@triton.jit
def _store_lanes(partials, index, count, mask, elements, s_sum, tau_mean, tau_m2, tau_lowest, bounds):
    """`store_partial` of rows, from the summaries of their lanes, each (M, LANES)."""
    size = tl.sum(elements, axis=1)
    mean = tl.sum(tau_mean * elements, axis=1) / tl.maximum(size, 1.0)
    delta = tl.where(elements > 0, tau_mean - mean[:, None], 0.0)
    m2 = tl.sum(tau_m2 + delta * delta * elements, axis=1)
    lowest = tl.min(tau_lowest, axis=1)
    store_partial(
        partials, index, count, mask, size, tl.sum(s_sum, axis=1), mean * size, m2, lowest, tl.sum(bounds, axis=1)
    )


@launched("rows")
@triton.jit
def _dense_forward(
    anchors, candidates, phi_anchors, phi_candidates, offset, temperatures, skip, totals, tops, moments, partials,
    stretch, tau_min, tau_span, beta, log_weight, share,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, MEAN: tl.constexpr,
    PER_ROW: tl.constexpr, MOMENTS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of every anchor and a stretch of the candidates: the highest value over ln 2 and Σ exp2(value/ln 2 − highest), or
    Σ value/ln 2; and the summary of s and τ. MOMENTS: also Σ exp2(value/ln 2 − highest)·s.
    """
    head = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    begin = tl.program_id(1) * stretch
    end = tl.minimum(begin + stretch, candidates.rows)
    lanes = tl.arange(0, N)
    shift = 0.0
    if HAS_OFFSET:
        shift = tl.load(offset).to(tl.float32)
    if not MEAN:
        share = 1.0
    depth = tl.arange(0, DEPTH)
    anchor_tile = load_tile(anchors, head, row, depth)
    phi_tile = anchor_tile
    if ADAPTIVE:
        phi_tile = load_tile(phi_anchors, head, row, depth)
    tau_of = tau_min
    if PER_ROW:
        tau_of = temperatures_of(temperatures, head, row, anchors.rows)[:, None]
    touched = touched_tiles(skip, row, anchors.rows, begin, N, N)
    fast: tl.constexpr = anchors.base.dtype.element_ty != tl.float32

    total = tl.zeros((M, LANES), tl.float32)
    # Finite, so that a tile without a negative adds exp(−∞) = 0 and not NaN.
    top = tl.full((M, LANES), -3.4e38, tl.float32)
    moment = tl.zeros((M, LANES), tl.float32)
    elements = tl.zeros((M, LANES), tl.float32)
    s_sum = tl.zeros((M, LANES), tl.float32)
    tau_mean = tl.zeros((M, LANES), tl.float32)
    tau_m2 = tl.zeros((M, LANES), tl.float32)
    tau_lowest = tl.full((M, LANES), float("inf"), tl.float32)
    bounds = tl.zeros((M, LANES), tl.float32)
    for tile in range(tl.cdiv(end - begin, N)):
        column = begin + tile * N + lanes
        other_tile = load_tile(candidates, head, column, depth)
        s = products(anchor_tile, other_tile, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
        r = s
        if ADAPTIVE:
            other_tile = load_tile(phi_candidates, head, column, depth)
            r = products(phi_tile, other_tile, phi_anchors, row, phi_candidates, column, head, DEPTH, WHOLE, PRECISION)
            r -= shift
        value, _, _, tau, bound = pair_terms(s, r, tau_of, tau_span, beta, log_weight, share, ADAPTIVE, fast)
        size = tl.full((M, LANES), N // LANES, tl.float32)
        if (begin + (tile + 1) * N > end) | is_touched(touched, tile):
            # The values tell what is hidden: they have the layout of all that follows, which masks would not have.
            value = tl.where((column < end)[None, :], value, float("-inf"))
            value = without(skip, value, row[:, None], anchors.rows, column[None, :], float("-inf"))
            hidden = value == float("-inf")
            size -= _lane_sums(_by_lanes(tl.where(hidden, 1.0, 0.0)))
            s = tl.where(hidden, 0.0, s)
            if MEAN:
                value = tl.where(hidden, 0.0, value)
            if ADAPTIVE:
                tau = _with_mean(tau, hidden, size)
                bound = tl.where(hidden, 0.0, bound)
        value = _by_lanes(value)
        if MEAN:
            total += _lane_sums(value)
        else:
            higher = tl.maximum(top, tl.max(tl.max(value, axis=3), axis=1))
            exponentials = tl.exp2(value - higher[:, None, :, None])
            scale = tl.exp2(top - higher)
            total = tl.fma(total, scale, _lane_sums(exponentials))
            if MOMENTS:
                moment = tl.fma(moment, scale, _lane_sums(exponentials * _by_lanes(s)))
            top = higher
        s_sum += _lane_sums(_by_lanes(s))
        together = elements + size
        if ADAPTIVE:
            tau_mean, tau_m2, tau_lowest = _spread(tau, tau_mean, tau_m2, tau_lowest, elements, size, together)
            bounds += _lane_sums(_by_lanes(bound))
        elements = together
    if not ADAPTIVE:
        tau_mean += tau_of
        tau_lowest = tl.where(elements > 0, tau_of, tau_lowest)
    if PER_ROW:
        bounds = elements * near_bound(tau_of, tau_min, tau_span)
    parts = tl.num_programs(1) * tl.num_programs(2) * anchors.rows
    at = (tl.program_id(1) * tl.num_programs(2) + head).to(tl.int64) * anchors.rows + row
    inside = row < anchors.rows
    if not MEAN:
        highest = tl.max(top, axis=1)
        scale = tl.exp2(top - highest[:, None])
        total *= scale
        tl.store(tops + at, highest, inside)
        if MOMENTS:
            tl.store(moments + at, tl.sum(moment * scale, axis=1), inside)
    tl.store(totals + at, tl.sum(total, axis=1), inside)
    _store_lanes(partials, at, parts, inside, elements, s_sum, tau_mean, tau_m2, tau_lowest, bounds)


@launched("count", "parts")
@triton.jit
def _dense_finish(
    totals, tops, moments, extra, temperatures, rows, shares, extra_shares, by_tau, partials, stats,
    count, splits, parts,
    MEAN: tl.constexpr, HAS_EXTRA: tl.constexpr, BY_TAU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The parts of each row joined; the first program, which takes longest, merges the summaries."""
    program = tl.program_id(0)
    if program == 0:
        summary(partials, stats, parts, BLOCK)
    else:
        row = (program - 1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = row < count
        total = tl.zeros((ROWS,), tl.float32)
        top = tl.full((ROWS,), -3.4e38, tl.float32)
        moment = tl.zeros((ROWS,), tl.float32)
        if BY_TAU:
            tau = tl.load(temperatures + row, inside, other=1.0).to(tl.float32)
        for split in range(splits):
            part = tl.load(totals + split * count + row, inside, other=1.0)
            if MEAN:
                total += part
            else:
                highest = tl.load(tops + split * count + row, inside, other=-3.4e38)
                higher = tl.maximum(top, highest)
                total = total * tl.exp2(top - higher) + part * tl.exp2(highest - higher)
                if BY_TAU:
                    part = tl.load(moments + split * count + row, inside, other=0.0)
                    moment = moment * tl.exp2(top - higher) + part * tl.exp2(highest - higher)
                top = higher
        if MEAN:
            tl.store(rows + row, total * LN2, inside)
            if BY_TAU:
                tl.store(by_tau + row, -total * LN2 / tau, inside)
        else:
            if HAS_EXTRA:
                logit = tl.load(extra + row, inside, other=0.0).to(tl.float32)
                before = top
                top, total, share = joined(top, total, logit)
                moment *= tl.exp2(before - top)
                tl.store(extra_shares + row, share, inside)
            if BY_TAU:
                tl.store(by_tau + row, -moment / (total * tau) / tau, inside)
            tl.store(rows + row, (top + tl.log2(total)) * LN2, inside)
            tl.store(shares + row, top, inside)
            tl.store(shares + count + row, 1.0 / total, inside)


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
    extra: Tensor | None = None,
    tau: Tensor | None = None,
    needs_tau: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Negative term of every anchor over all candidates but the skipped ones.

    Args:
        anchors, candidates: (C, A, d) and (C, B, d), any strides.
        phi_anchors, phi_candidates: (C, A, m) and (C, B, m), or None for a constant temperature.
        offset: 0-dim tensor subtracted from every r, or None.
        skip: (A, S) int64, distinct columns that are no negatives of the anchor, or None.
        mean: the released form, mean(s/τ) − β·Σ(log τ + 1/τ); else log Σ exp(s/τ − β·Ω(τ)).
        tau_min, tau_max, beta: range of τ and weight of its regulariser.
        extra: (C, A), an exponent that joins the sum of its anchor, or None; not of a mean.
        tau: (C, A), a temperature per anchor, without φ and with β = 0, or None.
        needs_tau: whether ∂rows/∂τ are needed.

    Returns:
        rows (C, A), stats (5,) of `common.summarise`, shares (2, C, A) for `dense_backward`: the highest exponent of
        each row over ln 2, `top`, and 1/Σ exp2(exponent/ln 2 − top); and ∂rows/∂extra and ∂rows/∂τ (C, A). All
        float32. Of a mean there are no shares, (0,), and no slopes of what is not there.
    """
    heads, count, dim = anchors.shape
    columns = candidates.shape[1]
    inputs = operands(anchors, candidates, phi_anchors, phi_candidates)
    kind, width = many_or_few(heads * count), max(dim, inputs[2].width)
    tiling = _forward_tiling(anchors, width, phi_anchors is not None, kind, tau is not None)
    tiles = blocks(count, int(tiling["M"]))
    stretch, splits = split_of(tiles * heads, columns, int(tiling["N"]))
    device = anchors.device
    parts = splits * heads * count
    totals = torch.empty(parts, device=device)
    tops = totals if mean else torch.empty_like(totals)
    partials = torch.empty(PARTIALS, parts, device=device)
    result = torch.empty(heads, count, device=device)
    stats = torch.empty(5, device=device)
    shares = torch.empty(0 if mean else (2, heads, count), device=device)
    extra_shares = result.new_empty(0) if extra is None else torch.empty_like(result)
    by_tau = torch.empty_like(result) if needs_tau else result.new_empty(0)
    moments = torch.empty_like(totals) if needs_tau and not mean else totals
    temperatures = totals if tau is None else tau.contiguous()
    _dense_forward[tiles, splits, heads](
        *inputs,
        totals if offset is None else offset,
        temperatures,
        skip_of(skip, totals),
        totals,
        tops,
        moments,
        partials,
        stretch,
        *settings_of(mean, columns - (0 if skip is None else skip.shape[1]), tau_min, tau_max, beta, dim),
        ADAPTIVE=phi_anchors is not None,
        HAS_OFFSET=offset is not None,
        MEAN=mean,
        PER_ROW=tau is not None,
        MOMENTS=needs_tau and not mean,
        **tiling,
        **FAITHFUL,
    )
    _dense_finish[1 + blocks(heads * count, 128),](
        totals, tops, moments, totals if extra is None else extra.contiguous(), temperatures,
        result, shares, extra_shares, by_tau, partials, stats, heads * count, splits, parts,
        MEAN=mean, HAS_EXTRA=extra is not None, BY_TAU=needs_tau, ROWS=128, BLOCK=1024, num_warps=8,
    )  # fmt: skip
    return result, stats, shares, extra_shares, by_tau


def _forward_tiling(x: Tensor, width: int, adaptive: bool, kind: str, per_row: bool) -> dict[str, int | bool | str]:
    """Launch parameters of `_dense_forward`: the largest tiles whose statistics fit in registers."""
    if x.dtype == torch.float32:
        shape = {"M": 64, "N": 32, "DEPTH": 32, "WHOLE": False}
    elif width > 128:
        shape = {"M": 64, "N": 32, "DEPTH": 64, "WHOLE": False}
    elif adaptive:
        shape = {"M": 128, "N": 32, "DEPTH": 64 if width <= 64 else 128, "WHOLE": True}
    else:
        height = 64 if common.capability(x) >= (10, 0) else 128
        shape = {"M": height, "N": 64, "DEPTH": 64 if width <= 64 else 128, "WHOLE": True}
    # Two blocks a multiprocessor where they fit.
    registers = 128 if shape["WHOLE"] and common.capability(x)[0] == 9 else 255
    launch = {"num_warps": 8, "num_stages": 3, "maxnreg": registers}
    default = {**shape, **launch, "PRECISION": common.dot_precision(x)}
    return tuning.chosen("dense.forward", key_of(x, width, adaptive, kind, per_row), default, x)
