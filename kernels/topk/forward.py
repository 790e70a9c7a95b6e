"""The value of every anchor over its chosen candidates, and the slopes of it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import FAITHFUL, LN2, PARTIALS, contiguous_rows, joined, near_bound, pair_terms, store_partial, summarise
from ..launch import blocks, launched, power_of_two
from ..tile import load_tile, rows_of
from .tiling import gather_tiling, padded


@launched("rows")
@triton.jit
def _topk_scores(phi_anchors, phi_candidates, chosen, scores, top_k, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    head = tl.program_id(1)
    lanes = tl.arange(0, WIDTH)
    anchor = load_tile(phi_anchors, head, row + tl.arange(0, 1), lanes).to(tl.float32)
    first = (head.to(tl.int64) * phi_anchors.rows + row) * top_k
    for start in range(0, top_k, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        column = tl.load(chosen + first + entry, entry < top_k, other=0)
        tile = load_tile(phi_candidates, head, column, lanes).to(tl.float32)
        tl.store(scores + first + entry, tl.sum(tile * anchor, axis=1), entry < top_k)


@launched()  # for any size it spills a register
@triton.jit
def _topk_rows(
    similarities, slope_s, slope_r, offset, extra, temperatures, result, extra_shares, by_tau, partials,
    count, top_k, tau_min, tau_span, beta, log_weight,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, HAS_EXTRA: tl.constexpr, MEAN: tl.constexpr,
    PER_ROW: tl.constexpr, BY_TAU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    lanes = tl.arange(0, BLOCK)
    share = 1.0
    if MEAN:
        share = 1.0 / top_k
    shift = 0.0
    if HAS_OFFSET:
        shift = tl.load(offset).to(tl.float32)
    tau_of = tau_min
    if PER_ROW:
        own = tl.load(temperatures + row, inside, other=1.0).to(tl.float32)
        tau_of = own[:, None]

    total = tl.zeros((ROWS,), tl.float32)
    # Finite, so that rows past the end stay NaN-free.
    top = tl.full((ROWS,), -3.4e38, tl.float32)
    s_sum = tl.zeros((ROWS,), tl.float32)
    tau_sum = tl.zeros((ROWS,), tl.float32)
    tau_lowest = tl.full((ROWS,), float("inf"), tl.float32)
    bounds = tl.zeros((ROWS,), tl.float32)
    for start in range(0, top_k, BLOCK):
        entry = start + lanes
        mask = inside[:, None] & (entry < top_k)[None, :]
        at = row[:, None] * top_k + entry[None, :]
        s = tl.load(similarities + at, mask, other=0.0)
        r = s
        if ADAPTIVE:
            r = tl.load(slope_r + at, mask, other=0.0) - shift
        value, _, _, tau, bound = pair_terms(s, r, tau_of, tau_span, beta, log_weight, share, ADAPTIVE)
        if MEAN:
            total += tl.sum(tl.where(mask, value, 0.0), axis=1)
        else:
            value = tl.where(mask, value, float("-inf"))
            higher = tl.maximum(top, tl.max(value, axis=1))
            total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(value - higher[:, None]), axis=1)
            top = higher
        s_sum += tl.sum(tl.where(mask, s, 0.0), axis=1)
        if not PER_ROW:
            tau_sum += tl.sum(tl.where(mask, tau, 0.0), axis=1)
            tau_lowest = tl.minimum(tau_lowest, tl.min(tl.where(mask, tau, float("inf")), axis=1))
            bounds += tl.sum(tl.where(mask, bound, 0.0), axis=1)
    if PER_ROW:
        tau_sum = own * top_k
        tau_lowest = own
        bounds = near_bound(own, tau_min, tau_span) * top_k
    final = total
    if HAS_EXTRA:
        top, total, extra_share = joined(top, total, tl.load(extra + row, inside, other=0.0).to(tl.float32))
        tl.store(extra_shares + row, extra_share, inside)
    if not MEAN:
        final = top + tl.log2(total)
    tl.store(result + row, final * LN2, inside)

    m2 = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    for start in range(0, top_k, BLOCK):
        entry = start + lanes
        mask = inside[:, None] & (entry < top_k)[None, :]
        at = row[:, None] * top_k + entry[None, :]
        s = tl.load(similarities + at, mask, other=0.0)
        r = s
        if ADAPTIVE:
            r = tl.load(slope_r + at, mask, other=0.0) - shift
        value, by_s, by_r, tau, bound = pair_terms(s, r, tau_of, tau_span, beta, log_weight, share, ADAPTIVE)
        if not MEAN:
            # Not exp(value − row): for large logits the row itself is rounded.
            softmax = tl.exp2(value - top[:, None]) / total[:, None]
            by_s *= softmax
            by_r *= softmax
        if not PER_ROW:
            deviation = tl.where(mask, tau - (tau_sum / top_k)[:, None], 0.0)
            m2 += tl.sum(deviation * deviation, axis=1)
        if BY_TAU:
            moment += tl.sum(tl.where(mask, by_s * s, 0.0), axis=1)
        tl.store(slope_s + at, by_s, mask)
        if ADAPTIVE:
            tl.store(slope_r + at, by_r, mask)
    if BY_TAU:
        tl.store(by_tau + row, -moment / own, inside)
    elements = tl.full((ROWS,), 1.0, tl.float32) * top_k
    store_partial(partials, row, count, inside, elements, s_sum, tau_sum, m2, tau_lowest, bounds)


def topk_forward(
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    similarities: Tensor,
    chosen: Tensor,
    mean: bool,
    tau_min: float,
    tau_max: float,
    beta: float,
    dim: int,
    extra: Tensor | None = None,
    tau: Tensor | None = None,
    needs_tau: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Negative term of every anchor over its chosen candidates.

    Args:
        phi_anchors, phi_candidates: (C, A, m) and (C, B, m), or None for a constant temperature.
        offset: 0-dim tensor subtracted from every r, or None.
        similarities, chosen: (C, A, κ), of `select.hardest`.
        mean: the released form, mean_T(s/τ) − β·Σ_T(log τ + 1/τ); else log Σ_T exp(s/τ − β·Ω(τ)).
        tau_min, tau_max, beta: range of τ and weight of its regulariser.
        dim: d in Ω(τ).
        extra: (C, A), a logit that joins the sum of its anchor, or None; not of a mean.
        tau: (C, A), a temperature per anchor, without φ and with β = 0, or None.
        needs_tau: whether ∂rows/∂τ are needed.

    Returns:
        rows (C, A); slopes ∂row/∂s and ∂row/∂r (C, A, κ), the latter empty without φ; stats (5,) of
        `common.summarise`; ∂rows/∂extra and ∂rows/∂τ (C, A), empty without. All float32.
    """
    heads, count, top_k = chosen.shape
    slope_s = torch.empty_like(similarities)
    slope_r = torch.empty_like(similarities) if phi_anchors is not None else similarities.new_empty(0)
    if phi_anchors is not None and phi_candidates is not None:
        _topk_scores[count, heads](
            rows_of(contiguous_rows(phi_anchors)),
            rows_of(contiguous_rows(phi_candidates)),
            chosen,
            slope_r,
            top_k,
            WIDTH=padded(phi_anchors),
            **gather_tiling("topk.scores", phi_anchors, padded(phi_anchors), "rows"),
        )
    result = torch.empty(heads, count, device=chosen.device)
    extra_shares = result.new_empty(0) if extra is None else torch.empty_like(result)
    by_tau = torch.empty_like(result) if needs_tau else result.new_empty(0)
    partials = torch.empty(PARTIALS, heads * count, device=chosen.device)
    block = min(1024, power_of_two(top_k))
    together = max(1, 1024 // block)
    _topk_rows[blocks(heads * count, together),](
        similarities,
        slope_s,
        slope_r,
        result if offset is None else offset,
        result if extra is None else extra.contiguous(),
        result if tau is None else tau.contiguous(),
        result,
        extra_shares,
        by_tau,
        partials,
        heads * count,
        top_k,
        tau_min,
        tau_max - tau_min,
        beta,
        1.0 if mean else 0.5 * dim,
        ADAPTIVE=phi_anchors is not None,
        HAS_OFFSET=offset is not None,
        HAS_EXTRA=extra is not None,
        MEAN=mean,
        PER_ROW=tau is not None,
        BY_TAU=needs_tau,
        ROWS=together,
        BLOCK=block,
        num_warps=4,
        **FAITHFUL,
    )
    return result, slope_s, slope_r, summarise(partials), extra_shares, by_tau
