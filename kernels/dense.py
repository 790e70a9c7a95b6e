"""Contrast over all candidates: log Σ exp(s/τ − β·Ω(τ)), or the released mean (Eq. 2.4; NT-Xent and DCL).

Tiles of s and r are formed, used and forgotten, as in flash attention. Forward: a running log-sum-exp per anchor.
Backward: tiles are formed again, and each gradient has one owner, so none needs atomics. Where anchors and candidates
are one table, s and r are symmetric and a pair counts for both of its rows with the slopes of one tile: row i collects
Σ_j (w_ij + w_ji)·slope_ij·z_j. Else there is one pass for the rows of the anchors and one for those of the candidates.
Few anchors against many candidates are split over the candidates, and the parts are added in a fixed order.

1/τ amplifies a difference of s between the passes, so all of them read the products at one depth and precision, and
the kernels are compiled without contraction of products and sums: the same source gives the same bits of a value. What
is fused is written as such, tl.fma.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common, tuning
from .common import FAITHFUL, LN2, PARTIALS, joined, negated_sum, pair_terms, store_partial, summary
from .launch import blocks, launched, power_of_two
from .tile import (
    Rows,
    is_touched,
    load_tile,
    products,
    rows_of,
    skip_of,
    touched_tiles,
)

# Columns of a row of a tile that one thread holds are 8 apart, in pairs: four threads share a row, and each keeps sums
# of its own, so that no tile waits for the others. A tile whose layout is another gives the same sums, only slower.
LANES = tl.constexpr(4)
# Elements of a block of `_dense_collect`.
_COLLECTED = 1024


@triton.jit
def _by_lanes(x):
    """(M, N) as (M, N/8, 4, 2)."""
    return tl.reshape(x, (x.shape[0], x.shape[1] // (2 * LANES), LANES, 2))


@triton.jit
def _lane_sums(x):
    """(M, N/8, 4, 2) → (M, 4)."""
    return tl.sum(tl.sum(x, axis=3), axis=1)


@triton.jit
def _without(skip, x, anchor, anchors, column, fill):
    """`x`, `fill` where the anchor skips the column; index tiles that broadcast."""
    for i in tl.static_range(skip.each):
        skipped = tl.load(skip.base + anchor.to(tl.int64) * skip.each + i, anchor < anchors, other=-1)
        x = tl.where(skipped.to(tl.int32) == column, fill, x)
    return x


@launched("rows")
@triton.jit
def _dense_forward(
    anchors, candidates, phi_anchors, phi_candidates, offset, skip, totals, tops, partials,
    span, tau_min, tau_span, beta, log_weight, share,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, MEAN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of every anchor and a span of the candidates: the highest value over ln 2 and Σ exp2(value/ln 2 − highest), or
    Σ value/ln 2; and the summary of s and τ.
    """
    head = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, candidates.rows)
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
    touched = touched_tiles(skip, row, anchors.rows, begin, N, N)
    fast: tl.constexpr = anchors.base.dtype.element_ty != tl.float32

    total = tl.zeros((M, LANES), tl.float32)
    # Finite, so that a tile without a negative adds exp(−∞) = 0 and not NaN.
    top = tl.full((M, LANES), -3.4e38, tl.float32)
    elements = tl.zeros((M, LANES), tl.float32)
    s_sum = tl.zeros((M, LANES), tl.float32)
    tau_mean = tl.zeros((M, LANES), tl.float32)
    tau_m2 = tl.zeros((M, LANES), tl.float32)
    tau_low = tl.full((M, LANES), float("inf"), tl.float32)
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
        value, _, _, tau, bound = pair_terms(s, r, tau_min, tau_span, beta, log_weight, share, ADAPTIVE, fast)
        size = tl.full((M, LANES), N // LANES, tl.float32)
        if (begin + (tile + 1) * N > end) | is_touched(touched, tile):
            # The values tell what is hidden: they have the layout of all that follows, which masks would not have.
            value = tl.where((column < end)[None, :], value, float("-inf"))
            value = _without(skip, value, row[:, None], anchors.rows, column[None, :], float("-inf"))
            hidden = value == float("-inf")
            size -= _lane_sums(_by_lanes(tl.where(hidden, 1.0, 0.0)))
            s = tl.where(hidden, 0.0, s)
            if MEAN:
                value = tl.where(hidden, 0.0, value)
            if ADAPTIVE:
                # The mean of the others neither moves it nor adds to the squares; nor, unless there are none, to the
                # minimum.
                mean = _lane_sums(_by_lanes(tl.where(hidden, 0.0, tau))) * common.reciprocal(tl.maximum(size, 1.0))
                mean = tl.broadcast_to(mean[:, None, :, None], (M, N // (2 * LANES), LANES, 2))
                tau = tl.where(hidden, tl.reshape(mean, (M, N)), tau)
                bound = tl.where(hidden, 0.0, bound)
        value = _by_lanes(value)
        if MEAN:
            total += _lane_sums(value)
        else:
            higher = tl.maximum(top, tl.max(tl.max(value, axis=3), axis=1))
            exponentials = tl.exp2(value - higher[:, None, :, None])
            total = tl.fma(total, tl.exp2(top - higher), _lane_sums(exponentials))
            top = higher
        s_sum += _lane_sums(_by_lanes(s))
        together = elements + size
        if ADAPTIVE:
            # Mean and spread of the tile joined to those so far (Chan et al.): no difference of large sums.
            tau = _by_lanes(tau)
            mean = _lane_sums(tau) * (LANES / N)
            deviation = tau - mean[:, None, :, None]
            delta = mean - tau_mean
            ratio = size * common.reciprocal(tl.maximum(together, 1.0))
            tau_m2 += tl.fma(delta * delta, elements * ratio, _lane_sums(deviation * deviation))
            tau_mean = tl.fma(delta, ratio, tau_mean)
            lowest = tl.min(tl.min(tau, axis=3), axis=1)
            tau_low = tl.where(size > 0, tl.minimum(tau_low, lowest), tau_low)
            bounds += _lane_sums(_by_lanes(bound))
        elements = together
    if not ADAPTIVE:
        tau_mean += tau_min
        tau_low = tl.where(elements > 0, tau_min, tau_low)
    parts = tl.num_programs(1) * tl.num_programs(2) * anchors.rows
    at = (tl.program_id(1) * tl.num_programs(2) + head).to(tl.int64) * anchors.rows + row
    inside = row < anchors.rows
    if not MEAN:
        highest = tl.max(top, axis=1)
        total *= tl.exp2(top - highest[:, None])
        tl.store(tops + at, highest, inside)
    tl.store(totals + at, tl.sum(total, axis=1), inside)
    size = tl.sum(elements, axis=1)
    mean = tl.sum(tau_mean * elements, axis=1) / tl.maximum(size, 1.0)
    delta = tl.where(elements > 0, tau_mean - mean[:, None], 0.0)
    m2 = tl.sum(tau_m2 + delta * delta * elements, axis=1)
    low = tl.min(tau_low, axis=1)
    store_partial(
        partials, at, parts, inside, size, tl.sum(s_sum, axis=1), mean * size, m2, low, tl.sum(bounds, axis=1)
    )


@launched("count", "parts")
@triton.jit
def _dense_finish(
    totals, tops, extra, rows, shares, extra_shares, partials, stats, count, splits, parts,
    MEAN: tl.constexpr, HAS_EXTRA: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
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
        for split in range(splits):
            part = tl.load(totals + split * count + row, inside, other=1.0)
            if MEAN:
                total += part
            else:
                highest = tl.load(tops + split * count + row, inside, other=-3.4e38)
                higher = tl.maximum(top, highest)
                total = total * tl.exp2(top - higher) + part * tl.exp2(highest - higher)
                top = higher
        if MEAN:
            tl.store(rows + row, total * LN2, inside)
        else:
            if HAS_EXTRA:
                logit = tl.load(extra + row, inside, other=0.0).to(tl.float32)
                top, total, share = joined(top, total, logit)
                tl.store(extra_shares + row, share, inside)
            tl.store(rows + row, (top + tl.log2(total)) * LN2, inside)
            tl.store(shares + row, top, inside)
            tl.store(shares + count + row, 1.0 / total, inside)


@triton.jit
def _crossing_tiles(skip, first_row, rows: tl.constexpr, begin, end, step: tl.constexpr):
    """`touched_tiles` the other way about: bit t mod 64 is set if one of the `step` rows of tile t from `begin` on, up
    to `end`, skips a column among the `rows` from first_row on.
    """
    lanes = tl.arange(0, 1024)
    bits = tl.zeros((1024,), tl.int64)
    if skip.each > 0:
        for start in range(begin, end, 1024):
            index = start + lanes
            hit = index < 0
            for i in tl.static_range(skip.each):
                distance = tl.load(skip.base + index.to(tl.int64) * skip.each + i, index < end, other=-1) - first_row
                hit |= (index < end) & (distance >= 0) & (distance < rows)
            bits |= tl.where(hit, 1, 0).to(tl.int64) << (((index - begin) // step) & 63).to(tl.int64)
    return tl.reduce_or(bits, axis=0)


@launched()  # for any size it spills a register
@triton.jit
def _dense_gradient(
    gradient, shares, own, other, phi_own, phi_other, offset, skip, grad_own, grad_phi, scores,
    span, tau_min, tau_span, beta, log_weight, share,
    BY_ROW: tl.constexpr, BY_COLUMN: tl.constexpr, ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr,
    MEAN: tl.constexpr, SCORES: tl.constexpr, X: tl.constexpr, PHI: tl.constexpr, CHUNKS: tl.constexpr,
    OUT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, OUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """OUT columns of the gradients of M rows `own`, and the sum of each row's slopes by r, over a span of `other`.

    BY_ROW: `own` are anchors. BY_COLUMN: `own` are candidates and `other` the anchors. Both: they are one table. Of a
    log-sum-exp the weights come from the highest value and the sum, the shares of `dense_forward`: for large values
    log Σ exp itself is rounded, and its exponential far off.
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
    if not MEAN:
        share = 1.0
    depth = tl.arange(0, DEPTH)
    own_tile = load_tile(own, head, row, depth)
    phi_tile = own_tile
    if ADAPTIVE:
        phi_tile = load_tile(phi_own, head, row, depth)
    inside = row < own.rows
    touched = tl.zeros((), tl.int64)
    if BY_ROW:
        g, highest = _weights(gradient, shares, head, row, own.rows, MEAN)
        touched |= touched_tiles(skip, row, own.rows, begin, N, N)
    if BY_COLUMN:
        touched |= _crossing_tiles(skip, tl.program_id(0) * M, M, begin, end, N)
    fast: tl.constexpr = own.base.dtype.element_ty != tl.float32
    out = tl.zeros((M, OUT), tl.float32)
    phi_out = tl.zeros((M, OUT), tl.float32)
    score = tl.zeros((M,), tl.float32)
    for tile in range(tl.cdiv(end - begin, N)):
        index = begin + tile * N + tl.arange(0, N)
        other_tile = load_tile(other, head, index, depth)
        s = products(own_tile, other_tile, own, row, other, index, head, DEPTH, WHOLE, PRECISION)
        r = s
        if ADAPTIVE:
            phi_other_tile = load_tile(phi_other, head, index, depth)
            r = products(phi_tile, phi_other_tile, phi_own, row, phi_other, index, head, DEPTH, WHOLE, PRECISION)
            r -= shift
        value, by_s, by_r, _, _ = pair_terms(s, r, tau_min, tau_span, beta, log_weight, share, ADAPTIVE, fast)
        masked = (begin + (tile + 1) * N > end) | is_touched(touched, tile)
        if BY_ROW:
            weight = _weight(value, g[:, None], highest[:, None], MEAN)
            if masked:
                weight = tl.where((index < end)[None, :], weight, 0.0)
                weight = _without(skip, weight, row[:, None], own.rows, index[None, :], 0.0)
        if BY_COLUMN:
            other_g, other_highest = _weights(gradient, shares, head, index, other.rows, MEAN)
            reverse = _weight(value, other_g[None, :], other_highest[None, :], MEAN)
            if masked:
                reverse = _without(skip, reverse, index[None, :], end, row[:, None], 0.0)
            weight = weight + reverse if BY_ROW else reverse
        if X:
            if not WHOLE:
                other_tile = load_tile(other, head, index, out_lanes)
            out = _accumulate(weight * by_s, other_tile, out, OUT_PRECISION)
        if PHI:
            weight *= by_r
            if not WHOLE:
                phi_other_tile = load_tile(phi_other, head, index, out_lanes)
            phi_out = _accumulate(weight, phi_other_tile, phi_out, OUT_PRECISION)
            if SCORES:
                score += tl.sum(weight, axis=1)
    at = (split * tl.num_programs(2) + head).to(tl.int64) * own.rows + row
    if X:
        place = grad_own + at[:, None] * own.width + out_lanes[None, :]
        tl.store(place, out.to(grad_own.dtype.element_ty), inside[:, None] & (out_lanes < own.width)[None, :])
    if PHI:
        place = grad_phi + at[:, None] * phi_own.width + out_lanes[None, :]
        mask = inside[:, None] & (out_lanes < phi_own.width)[None, :]
        tl.store(place, phi_out.to(grad_phi.dtype.element_ty), mask)
        if SCORES:
            if BY_ROW and BY_COLUMN:  # each pair of rows was met in both orders, with both weights
                score *= 0.5
            tl.store(scores + at, score, inside & (chunk == 0))


@triton.jit
def _weights(gradient, shares, head, row, rows, MEAN: tl.constexpr):
    """What the exponentials of a row's values are multiplied with, and the highest value; nothing past the end."""
    flat = head.to(tl.int64) * rows + row
    g = tl.load(gradient + flat, row < rows, other=0.0)
    highest = g
    if not MEAN:
        highest = tl.load(shares + flat, row < rows, other=float("inf"))
        g *= tl.load(shares + tl.num_programs(2) * rows + flat, row < rows, other=0.0)
    return g, highest


@triton.jit
def _weight(value, g, highest, MEAN: tl.constexpr):
    """∂loss/∂value."""
    if MEAN:
        return tl.broadcast_to(g, value.shape)
    else:
        # No value is above the highest, but for rounding, which a small τ would raise to infinity.
        return g * tl.exp2(tl.minimum(value - highest, 0.0))


@triton.jit
def _accumulate(weights, table, result, PRECISION: tl.constexpr):
    """result + weights·table, in the dtype of the table; float16 as tf32, which holds it and any weight."""
    if table.dtype == tl.bfloat16:
        return tl.dot(weights.to(tl.bfloat16), table, result, out_dtype=tl.float32)
    else:
        return tl.dot(weights, table.to(tl.float32), result, input_precision=PRECISION, out_dtype=tl.float32)


@launched("score_count", "x_blocks")
@triton.jit
def _dense_collect(
    x_parts, phi_parts, scores, grad_x, grad_phi, of_offset, x_size, phi_size, splits, score_count, x_blocks,
    SCORES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the splits of both gradients; the first program: the gradient of the offset, −Σ scores."""
    program = tl.program_id(0)
    if SCORES:  # noqa: SIM102 (of the compiler and of the program)
        if program == 0:
            negated_sum(scores, of_offset, score_count, BLOCK)
    first = (program - 1).to(tl.int64) * BLOCK
    if (program > 0) & (program <= x_blocks):
        _sum_parts(x_parts, grad_x, first, x_size, splits, BLOCK)
    if program > x_blocks:
        _sum_parts(phi_parts, grad_phi, first - x_blocks * BLOCK, phi_size, splits, BLOCK)


@triton.jit
def _sum_parts(parts, result, first, size, splits, BLOCK: tl.constexpr):
    at = first + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.load(parts + size * split + at, at < size, other=0.0)
    tl.store(result + at, total.to(result.dtype.element_ty), at < size)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Negative term of every anchor over all candidates but the skipped ones.

    Args:
        anchors, candidates: (C, A, d) and (C, B, d), any strides.
        phi_anchors, phi_candidates: (C, A, m) and (C, B, m), or None for a constant temperature.
        offset: 0-dim tensor subtracted from every r, or None.
        skip: (A, S) int64, distinct columns that are no negatives of the anchor, or None.
        mean: the released form, mean(s/τ) − β·Σ(log τ + 1/τ); else log Σ exp(s/τ − β·Ω(τ)).
        tau_min, tau_max, beta: range of τ and weight of its regulariser.
        extra: (C, A), an exponent that joins the sum of its anchor, or None; not of a mean.

    Returns:
        rows (C, A), stats (5,) of `common.summarise`, shares (2, C, A) for `dense_backward`: the highest exponent of
        each row over ln 2, `top`, and 1/Σ exp2(exponent/ln 2 − top); and ∂rows/∂extra (C, A). All float32. Of a mean
        there are no shares, (0,), without extra no slopes of it.
    """
    heads, rows, dim = anchors.shape
    columns = candidates.shape[1]
    inputs = _operands(anchors, candidates, phi_anchors, phi_candidates)
    tiling = _forward_tiling(anchors, max(dim, inputs[2].width), phi_anchors is not None, _many(heads * rows))
    tiles = blocks(rows, int(tiling["M"]))
    span, splits = _split(tiles * heads, columns, int(tiling["N"]))
    device = anchors.device
    parts = splits * heads * rows
    totals = torch.empty(parts, device=device)
    tops = totals if mean else torch.empty_like(totals)
    partials = torch.empty(PARTIALS, parts, device=device)
    result = torch.empty(heads, rows, device=device)
    stats = torch.empty(5, device=device)
    shares = torch.empty(0 if mean else (2, heads, rows), device=device)
    extra_shares = result.new_empty(0) if extra is None else torch.empty_like(result)
    _dense_forward[tiles, splits, heads](
        *inputs,
        totals if offset is None else offset,
        skip_of(skip, totals),
        totals,
        tops,
        partials,
        span,
        *_settings(mean, columns - (0 if skip is None else skip.shape[1]), tau_min, tau_max, beta, dim),
        ADAPTIVE=phi_anchors is not None,
        HAS_OFFSET=offset is not None,
        MEAN=mean,
        **tiling,
        **FAITHFUL,
    )
    count = heads * rows
    _dense_finish[1 + blocks(count, 128),](
        totals, tops, totals if extra is None else extra.contiguous(), result, shares, extra_shares, partials, stats,
        count, splits, parts,
        MEAN=mean, HAS_EXTRA=extra is not None, ROWS=128, BLOCK=1024, num_warps=8,
    )  # fmt: skip
    return result, stats, shares, extra_shares


def dense_backward(
    gradient: Tensor,
    shares: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    mean: bool,
    tau_min: float,
    tau_max: float,
    beta: float,
    needs: tuple[bool, bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of anchors, candidates, φ(anchors), φ(candidates) and the offset, each only if `needs` says so.

    Args:
        gradient: (C, A), of the rows.
        shares: of `dense_forward`.
        candidates, phi_candidates: None if they are the anchors and φ(anchors); what these get is the sum of both then.
        needs: which of the five gradients are wanted.

        The rest is as in `dense_forward`.
    """
    gradient = gradient.contiguous()
    one = candidates is None
    if candidates is None:
        candidates, phi_candidates = anchors, phi_anchors
    count = candidates.shape[1] - (0 if skip is None else skip.shape[1])
    settings = _settings(mean, count, tau_min, tau_max, beta, anchors.shape[2])
    inputs = _operands(anchors, candidates, phi_anchors, phi_candidates)
    flags = {"ADAPTIVE": phi_anchors is not None, "MEAN": mean}
    shared = (gradient, shares, offset, skip, settings, flags)
    of_anchors = of_phi_anchors = of_candidates = of_phi_candidates = of_offset = None
    if needs[0] or needs[2] or needs[4]:
        sides = {"BY_ROW": True, "BY_COLUMN": one}
        of_anchors, of_phi_anchors, of_offset = _gradients(inputs, needs[0], needs[2], needs[4], *shared, sides)
    if needs[1] or needs[3]:
        turned = (inputs[1], inputs[0], inputs[3], inputs[2])
        sides = {"BY_ROW": False, "BY_COLUMN": True}
        of_candidates, of_phi_candidates, _ = _gradients(turned, needs[1], needs[3], False, *shared, sides)
    return of_anchors, of_candidates, of_phi_anchors, of_phi_candidates, of_offset


def _gradients(
    inputs: tuple[Rows, Rows, Rows, Rows],
    x: bool,
    phi: bool,
    of_offset: bool,
    gradient: Tensor,
    shares: Tensor,
    offset: Tensor | None,
    skip: Tensor | None,
    settings: tuple[float, ...],
    flags: dict[str, bool],
    sides: dict[str, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Launch `_dense_gradient` for the rows inputs[0]; returns its gradient, φ's, and the offset's."""
    own, other, phi_own, _ = inputs
    heads = gradient.shape[0]
    device = gradient.device
    width = max(own.width, phi_own.width)
    side = "one table" if sides["BY_ROW"] and sides["BY_COLUMN"] else "columns" if sides["BY_COLUMN"] else "rows"
    tiling = _gradient_tiling(own.base, width, flags["ADAPTIVE"], f"{side} {_many(heads * own.rows)}")
    chunks = blocks(width, int(tiling["OUT"]))
    tiles = blocks(own.rows, int(tiling["M"]))
    span, splits = _split(tiles * heads * chunks, other.rows, int(tiling["N"]))

    def output(rows: Rows, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Where the kernel writes, and what is returned; the same if there is nothing to add up."""
        if not wanted:
            return gradient, None
        shape = (heads, rows.rows, rows.width)
        result = torch.empty(shape, dtype=rows.base.dtype, device=device)
        return (result if splits == 1 else torch.empty(splits, *shape, device=device)), result

    phi |= of_offset
    x_parts, of_x = output(own, x)
    phi_parts, of_phi = output(phi_own, phi)
    scores = torch.empty(splits, heads, own.rows, device=device) if of_offset else gradient
    _dense_gradient[tiles, splits * chunks, heads](
        gradient,
        shares,
        *inputs,
        gradient if offset is None else offset,
        skip_of(skip, gradient),
        x_parts,
        phi_parts,
        scores,
        span,
        *settings,
        **sides,
        **flags,
        HAS_OFFSET=offset is not None,
        SCORES=of_offset,
        X=x,
        PHI=phi,
        CHUNKS=chunks,
        **tiling,
        **FAITHFUL,
    )
    result = None if offset is None or not of_offset else torch.empty_like(offset)
    # Nothing to add up: no launch.
    sizes = [0 if of is None or splits == 1 else of.numel() for of in (of_x, of_phi)]
    x_blocks, phi_blocks = (blocks(size, _COLLECTED) for size in sizes)
    if of_offset or x_blocks + phi_blocks:
        _dense_collect[1 + x_blocks + phi_blocks,](
            x_parts,
            phi_parts,
            scores,
            gradient if of_x is None else of_x,
            gradient if of_phi is None else of_phi,
            gradient if result is None else result,
            *sizes,
            splits,
            scores.numel(),
            x_blocks,
            SCORES=of_offset,
            BLOCK=_COLLECTED,
            num_warps=4,
        )
    return of_x, of_phi, result


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
    parts = max(1, min(blocks(256, max(1, programs)), columns // (4 * tile)))
    span = max(1, blocks(blocks(columns, parts), tile)) * tile
    return span, max(1, blocks(columns, span))


def _forward_tiling(x: Tensor, width: int, adaptive: bool, many: str) -> dict[str, int | bool | str]:
    """Launch parameters of `_dense_forward`: the largest tiles whose statistics fit in registers."""
    if x.dtype == torch.float32:
        shape = {"M": 64, "N": 32, "DEPTH": 32, "WHOLE": False}
    elif width > 128:
        shape = {"M": 64, "N": 32, "DEPTH": 64, "WHOLE": False}
    elif adaptive:
        shape = {"M": 128, "N": 32, "DEPTH": 64 if width <= 64 else 128, "WHOLE": True}
    else:
        rows = 64 if common.capability(x) >= (10, 0) else 128
        shape = {"M": rows, "N": 64, "DEPTH": 64 if width <= 64 else 128, "WHOLE": True}
    # Two blocks a multiprocessor where they fit.
    registers = 128 if shape["WHOLE"] and common.capability(x)[0] == 9 else 255
    launch = {"num_warps": 8, "num_stages": 3, "maxnreg": registers}
    default = {**shape, **launch, "PRECISION": common.dot_precision(x)}
    return tuning.chosen("dense.forward", _key(x, width, adaptive, many), default, x)


def _gradient_tiling(x: Tensor, width: int, adaptive: bool, sides: str) -> dict[str, int | bool | str]:
    """Launch parameters of `_dense_gradient`: two sums of M × OUT and two tiles of M × N must fit in registers."""
    recent = common.capability(x) >= (9, 0)
    precision = common.dot_precision(x)
    warps = 8
    if x.dtype == torch.float32:
        shape = {"M": 64 if recent else 32, "N": 16 if recent else 32, "DEPTH": 32, "WHOLE": False, "OUT": 64}
        warps = 4 if recent else 8
    else:
        half = x.dtype == torch.float16  # its second products are tf32, which take twice the registers
        columns = 32 if half else 64
        if adaptive:
            columns = 16 if recent and (half or width > 128) else 32
        # Older tensor cores take both operands from registers. Rows that stay there leave no room for float16's wide
        # weights, nor for the weights of both orders of a pair.
        whole = width <= 128 and (recent or not (half or (adaptive and sides.startswith("one table"))))
        shape = {
            "M": 128 if recent and (whole or not adaptive) else 64,
            "N": columns,
            "DEPTH": 128 if whole and width > 64 else 64,
            "WHOLE": whole,
            "OUT": 64 if width <= 64 else 128,
        }
    out_precision = "tf32" if x.dtype == torch.float16 else precision
    launch = {"num_warps": warps, "num_stages": 3 if recent else 2, "maxnreg": 255}
    default = {**shape, **launch, "PRECISION": precision, "OUT_PRECISION": out_precision}
    return tuning.chosen("dense.gradient", _key(x, width, adaptive, sides), default, x)


def _many(rows: int) -> str:
    """Whether blocks of rows alone fill a GPU."""
    return "many" if rows >= 2**14 else "few"


def _key(x: Tensor, width: int, adaptive: bool, kind: str) -> str:
    columns = max(64, power_of_two(width))
    return f"{str(x.dtype).removeprefix('torch.')} d={columns} {'adaptive' if adaptive else 'constant'} {kind}"
