"""The gradients over all candidates: tiles formed again, each gradient written by one owner."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import common, tuning
from ..common import FAITHFUL, negated_sum, pair_terms
from ..launch import Rows, blocks, launched
from ..tile import is_touched, load_tile, products, skip_of, touched_tiles
from .call import key_of, many_or_few, operands, settings_of, split_of, temperatures_of, without

# Elements of a block of `_dense_collect`.
_COLLECTED = 1024


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


@launched()  # for any size it spills a register
@triton.jit
def _dense_gradient(
    gradient, shares, own, other, phi_own, phi_other, offset, temperatures, skip, grad_own, grad_phi, scores,
    stretch, tau_min, tau_span, beta, log_weight, share,
    BY_ROW: tl.constexpr, BY_COLUMN: tl.constexpr, ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr,
    MEAN: tl.constexpr, PER_ROW: tl.constexpr, SCORES: tl.constexpr, X: tl.constexpr, PHI: tl.constexpr,
    CHUNKS: tl.constexpr, OUT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, OUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """OUT columns of the gradients of M rows `own`, and the sum of each row's slopes by r, over a stretch of `other`.

    BY_ROW: `own` are anchors. BY_COLUMN: `own` are candidates and `other` the anchors. Both: they are one table. Of a
    log-sum-exp the weights come from the highest value and the sum, the shares of `dense_forward`: for large values
    log Σ exp itself is rounded, and its exponential far off. PER_ROW: every pair has the temperature of its anchor, so
    a pair of one table has one in each order; the weights hold 1/τ.
    """
    head = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    split = tl.program_id(1) // CHUNKS
    chunk = tl.program_id(1) % CHUNKS
    out_lanes = chunk * OUT + tl.arange(0, OUT)
    begin = split * stretch
    end = tl.minimum(begin + stretch, other.rows)
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
    tau_of = tau_min
    if BY_ROW:
        g, highest = _weights(gradient, shares, head, row, own.rows, MEAN)
        if PER_ROW:
            own_tau = temperatures_of(temperatures, head, row, own.rows)
            tau_of = own_tau[:, None]
            g *= share / own_tau
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
        value, by_s, by_r, _, _ = pair_terms(s, r, tau_of, tau_span, beta, log_weight, share, ADAPTIVE, fast)
        masked = (begin + (tile + 1) * N > end) | is_touched(touched, tile)
        if BY_ROW:
            weight = _weight(value, g[:, None], highest[:, None], MEAN)
            if masked:
                weight = tl.where((index < end)[None, :], weight, 0.0)
                weight = without(skip, weight, row[:, None], own.rows, index[None, :], 0.0)
        if BY_COLUMN:
            other_g, other_highest = _weights(gradient, shares, head, index, other.rows, MEAN)
            if PER_ROW:
                other_tau = temperatures_of(temperatures, head, index, other.rows)
                other_g *= share / other_tau
                value, _, _, _, _ = pair_terms(
                    s, r, other_tau[None, :], tau_span, beta, log_weight, share, ADAPTIVE, fast
                )
            reverse = _weight(value, other_g[None, :], other_highest[None, :], MEAN)
            if masked:
                reverse = without(skip, reverse, index[None, :], end, row[:, None], 0.0)
            weight = weight + reverse if BY_ROW else reverse
        if X:
            if not WHOLE:
                other_tile = load_tile(other, head, index, out_lanes)
            out = _accumulate(weight if PER_ROW else weight * by_s, other_tile, out, OUT_PRECISION)
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
    tau: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of anchors, candidates, φ(anchors), φ(candidates) and the offset, each only if `needs` says so.

    Args:
        gradient: (C, A), of the rows.
        shares: of `dense_forward`.
        candidates, phi_candidates: None if they are the anchors and φ(anchors); what these get is the sum of both then.
        needs: which of the five gradients are needed.
        tau: (C, A), a temperature per anchor, or None.

        The rest is as in `dense_forward`.
    """
    gradient = gradient.contiguous()
    one = candidates is None
    if candidates is None:
        candidates, phi_candidates = anchors, phi_anchors
    count = candidates.shape[1] - (0 if skip is None else skip.shape[1])
    settings = settings_of(mean, count, tau_min, tau_max, beta, anchors.shape[2])
    inputs = operands(anchors, candidates, phi_anchors, phi_candidates)
    flags = {"ADAPTIVE": phi_anchors is not None, "MEAN": mean, "PER_ROW": tau is not None}
    shared = (gradient, shares, offset, None if tau is None else tau.contiguous(), skip, settings, flags)
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
    tau: Tensor | None,
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
    kind = f"{side} {many_or_few(heads * own.rows)}"
    tiling = _gradient_tiling(own.base, width, flags["ADAPTIVE"], kind, flags["PER_ROW"])
    chunks = blocks(width, int(tiling["OUT"]))
    tiles = blocks(own.rows, int(tiling["M"]))
    stretch, splits = split_of(tiles * heads * chunks, other.rows, int(tiling["N"]))

    def output(rows: Rows, need: bool) -> tuple[Tensor, Tensor | None]:
        """Where the kernel writes, and what is returned; the same if there is nothing to add up."""
        if not need:
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
        gradient if tau is None else tau,
        skip_of(skip, gradient),
        x_parts,
        phi_parts,
        scores,
        stretch,
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


def _gradient_tiling(x: Tensor, width: int, adaptive: bool, sides: str, per_row: bool) -> dict[str, int | bool | str]:
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
        if per_row and sides.startswith("one table") and common.capability(x) >= (10, 0):
            columns = 32  # two weights of each pair beside sums that lie in registers
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
    return tuning.chosen("dense.gradient", key_of(x, width, adaptive, sides, per_row), default, x)
