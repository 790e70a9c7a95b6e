"""Contrast over the κ hardest candidates of each anchor, once `select.hardest` has found them (Eq. 2.1, 2.4).

With κ ≪ B everything but the similarities is needed for κ columns a row only, so it is gathered:

- `_scores`: r of the chosen pairs;
- `_rows`: the value of each row and its slopes ∂row/∂s and ∂row/∂r, which are all that the backward pass keeps;
- `_weighted_sums`: every gradient is a sum of gathered rows weighted by those slopes.

Candidates collect from the anchors that chose them by a list sorted by column, not by atomics: the same bits every
run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    PARTIALS,
    pair_terms,
    store_partial,
    summarise,
    unit_rows,
)
from .tile import load_tile, rows_of


@triton.jit
def _scores(phi_anchors, phi_candidates, chosen, scores, top_k, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    head = tl.program_id(1)
    lanes = tl.arange(0, WIDTH)
    anchor = load_tile(phi_anchors, head, row + tl.arange(0, 1), lanes).to(tl.float32)
    first = (head.to(tl.int64) * phi_anchors.rows + row) * top_k
    for start in range(0, top_k, BLOCK):
        k = start + tl.arange(0, BLOCK)
        column = tl.load(chosen + first + k, k < top_k, other=0)
        tile = load_tile(phi_candidates, head, column, lanes).to(tl.float32)
        tl.store(scores + first + k, tl.sum(tile * anchor, axis=1), k < top_k)


@triton.jit
def _rows(
    similarities, slope_s, slope_r, offset, result, partials,
    count, top_k, tau_min, tau_span, beta, log_weight,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, MEAN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
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

    total = tl.zeros((ROWS,), tl.float32)
    # Finite, so that rows past the end stay NaN-free.
    top = tl.full((ROWS,), -3.4e38, tl.float32)
    s_sum = tl.zeros((ROWS,), tl.float32)
    tau_sum = tl.zeros((ROWS,), tl.float32)
    tau_low = tl.full((ROWS,), float("inf"), tl.float32)
    bounds = tl.zeros((ROWS,), tl.float32)
    for start in range(0, top_k, BLOCK):
        k = start + lanes
        mask = inside[:, None] & (k < top_k)[None, :]
        at = row[:, None] * top_k + k[None, :]
        s = tl.load(similarities + at, mask, other=0.0)
        r = s
        if ADAPTIVE:
            r = tl.load(slope_r + at, mask, other=0.0) - shift
        value, _, _, tau, bound = pair_terms(s, r, tau_min, tau_span, beta, log_weight, share, ADAPTIVE)
        if MEAN:
            total += tl.sum(tl.where(mask, value, 0.0), axis=1)
        else:
            value = tl.where(mask, value, float("-inf"))
            higher = tl.maximum(top, tl.max(value, axis=1))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher[:, None]), axis=1)
            top = higher
        s_sum += tl.sum(tl.where(mask, s, 0.0), axis=1)
        tau_sum += tl.sum(tl.where(mask, tau, 0.0), axis=1)
        tau_low = tl.minimum(tau_low, tl.min(tl.where(mask, tau, float("inf")), axis=1))
        bounds += tl.sum(tl.where(mask, bound, 0.0), axis=1)
    final = total
    if not MEAN:
        final = top + tl.log(total)
    tl.store(result + row, final, inside)

    m2 = tl.zeros((ROWS,), tl.float32)
    for start in range(0, top_k, BLOCK):
        k = start + lanes
        mask = inside[:, None] & (k < top_k)[None, :]
        at = row[:, None] * top_k + k[None, :]
        s = tl.load(similarities + at, mask, other=0.0)
        r = s
        if ADAPTIVE:
            r = tl.load(slope_r + at, mask, other=0.0) - shift
        value, by_s, by_r, tau, bound = pair_terms(s, r, tau_min, tau_span, beta, log_weight, share, ADAPTIVE)
        if not MEAN:
            # Not exp(value − row): for large logits the row itself is rounded.
            softmax = tl.exp(value - top[:, None]) / total[:, None]
            by_s *= softmax
            by_r *= softmax
        deviation = tl.where(mask, tau - (tau_sum / top_k)[:, None], 0.0)
        m2 += tl.sum(deviation * deviation, axis=1)
        tl.store(slope_s + at, by_s, mask)
        if ADAPTIVE:
            tl.store(slope_r + at, by_r, mask)
    elements = tl.full((ROWS,), 1.0, tl.float32) * top_k
    store_partial(partials, row, count, inside, elements, s_sum, tau_sum, m2, tau_low, bounds)


@triton.jit
def _weighted_sums(
    gradient, slope_s, slope_r, chosen, order, starts, x, phi, grad_x, grad_phi, sources, top_k,
    BY_COLUMN: tl.constexpr, X: tl.constexpr, PHI: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    PHI_WIDTH: tl.constexpr,
):  # fmt: skip
    """Row of grad_x: Σ gradient·slope_s·x, of grad_phi: Σ gradient·slope_r·phi, over the pairs of one row.

    Pair e = (head·sources + anchor)·κ + k. BY_COLUMN: the row is a candidate, its pairs are order[starts[row]:]
    up to the next start, and x, phi are the anchors'. Else the row is an anchor with κ pairs, and x, phi are the
    candidates'.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    flat = head.to(tl.int64) * tl.num_programs(0) + row
    if BY_COLUMN:
        begin = tl.load(starts + flat).to(tl.int64)
        end = tl.load(starts + flat + 1).to(tl.int64)
        own = 1.0
    else:
        begin = flat * top_k
        end = begin + top_k
        own = tl.load(gradient + flat)
    lanes = tl.arange(0, WIDTH)
    phi_lanes = tl.arange(0, PHI_WIDTH)
    x_sum = tl.zeros((BLOCK, WIDTH), tl.float32)
    phi_sum = tl.zeros((BLOCK, PHI_WIDTH), tl.float32)
    for start in range(0, (end - begin).to(tl.int32), BLOCK):
        place = begin + start + tl.arange(0, BLOCK)
        mask = place < end
        if BY_COLUMN:
            pair = tl.load(order + place, mask, other=0)
            anchor = pair // top_k
            # Past the end a row that load_tile takes for zeros: pair 0 is of head 0, and lies before this head's rows.
            source = tl.where(mask, anchor - head * sources, sources)
            g = tl.load(gradient + anchor, mask, other=0.0)
        else:
            pair = place
            source = tl.load(chosen + pair, mask, other=sources)
            g = tl.where(mask, 1.0, 0.0)
        if X:
            weight = g * tl.load(slope_s + pair, mask, other=0.0)
            x_sum += weight[:, None] * load_tile(x, head, source, lanes).to(tl.float32)
        if PHI:
            weight = g * tl.load(slope_r + pair, mask, other=0.0)
            phi_sum += weight[:, None] * load_tile(phi, head, source, phi_lanes).to(tl.float32)
    if X:
        value = own * tl.sum(x_sum, axis=0)
        tl.store(grad_x + flat * x.width + lanes, value.to(grad_x.dtype.element_ty), lanes < x.width)
    if PHI:
        value = own * tl.sum(phi_sum, axis=0)
        out = grad_phi + flat * phi.width + phi_lanes
        tl.store(out, value.to(grad_phi.dtype.element_ty), phi_lanes < phi.width)


def _tiling(width: int) -> dict[str, int]:
    """8 gathered rows in flight, 32 elements of each table a thread."""
    return {"BLOCK": 8, "WIDTH": width, "num_warps": max(1, min(8, width // 128))}


def gathered_forward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Negative term of every anchor over its chosen candidates.

    Args:
        phi_anchors, phi_candidates: (C, A, m) and (C, B, m), or None for a constant temperature.
        offset: 0-dim tensor subtracted from every r, or None.
        similarities, chosen: (C, A, κ), of `select.hardest`.
        mean: the released form, mean_T(s/τ) − β·Σ_T(log τ + 1/τ); else log Σ_T exp(s/τ − β·Ω(τ)).
        tau_min, tau_max, beta: range of τ and weight of its regulariser.
        dim: d in Ω(τ).

    Returns:
        rows (C, A); slopes ∂row/∂s and ∂row/∂r (C, A, κ), the latter empty for a constant temperature; stats (5,)
        of `common.summarise`. All float32.
    """
    heads, rows, top_k = chosen.shape
    slope_s = torch.empty_like(similarities)
    slope_r = torch.empty_like(similarities) if phi_anchors is not None else similarities.new_empty(0)
    if phi_anchors is not None and phi_candidates is not None:
        _scores[rows, heads](
            rows_of(unit_rows(phi_anchors)),
            rows_of(unit_rows(phi_candidates)),
            chosen,
            slope_r,
            top_k,
            **_tiling(_padded(phi_anchors)),
        )
    result = torch.empty(heads, rows, device=chosen.device)
    partials = torch.empty(PARTIALS, heads * rows, device=chosen.device)
    block = min(1024, triton.next_power_of_2(top_k))
    together = max(1, 1024 // block)
    _rows[triton.cdiv(heads * rows, together),](
        similarities,
        slope_s,
        slope_r,
        result if offset is None else offset,
        result,
        partials,
        heads * rows,
        top_k,
        tau_min,
        tau_max - tau_min,
        beta,
        1.0 if mean else 0.5 * dim,
        ADAPTIVE=phi_anchors is not None,
        HAS_OFFSET=offset is not None,
        MEAN=mean,
        ROWS=together,
        BLOCK=block,
        num_warps=4,
    )
    return result, slope_s, slope_r, summarise(partials)


def gathered_backward(
    gradient: Tensor,
    slope_s: Tensor,
    slope_r: Tensor,
    chosen: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of anchors, candidates, φ(anchors) and φ(candidates), each only if `needs` says so.

    Args:
        gradient: (C, A), of the rows.
        slope_s, slope_r: of `gathered_forward`.
        chosen: of `select.hardest`.
        anchors, candidates, phi_anchors, phi_candidates: (C, A, d), (C, B, d), (C, A, m), (C, B, m).
        needs: which of the four gradients are wanted.
    """
    gradient = gradient.contiguous()
    heads, columns, _ = candidates.shape
    of_anchors = of_phi_anchors = of_candidates = of_phi_candidates = None
    if needs[0] or needs[2]:
        of_anchors, of_phi_anchors = _sums(
            (gradient, slope_s, slope_r, chosen, chosen, chosen),
            candidates if needs[0] else None,
            phi_candidates if needs[2] else None,
            chosen.shape[1],
            by_column=False,
        )
    if needs[1] or needs[3]:
        head = torch.arange(heads, device=chosen.device, dtype=_index_dtype(heads * columns))
        key = (chosen + (head * columns)[:, None, None]).flatten()
        key, order = key.sort(stable=True)
        order = order.to(_index_dtype(order.numel()))
        starts = torch.searchsorted(key, torch.arange(heads * columns + 1, device=key.device, dtype=key.dtype))
        of_candidates, of_phi_candidates = _sums(
            (gradient, slope_s, slope_r, chosen, order, starts),
            anchors if needs[1] else None,
            phi_anchors if needs[3] else None,
            columns,
            by_column=True,
        )
    return of_anchors, of_candidates, of_phi_anchors, of_phi_candidates


def _sums(
    lists: tuple[Tensor, ...], x: Tensor | None, phi: Tensor | None, rows: int, by_column: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Launch `_weighted_sums` for `rows` rows a head; a table that is None needs no gradient."""
    heads, _, top_k = lists[3].shape
    tables = [None if table is None else unit_rows(table) for table in (x, phi)]
    grads = [
        None if table is None else torch.empty(heads, rows, table.shape[2], dtype=table.dtype, device=table.device)
        for table in tables
    ]
    one = next(table for table in tables if table is not None)
    width, phi_width = (16 if table is None else _padded(table) for table in tables)
    _weighted_sums[rows, heads](
        *lists,
        *(rows_of(one if table is None else table) for table in tables),
        *(one if grad is None else grad for grad in grads),
        one.shape[1],
        top_k,
        BY_COLUMN=by_column,
        X=x is not None,
        PHI=phi is not None,
        PHI_WIDTH=phi_width,
        **_tiling(width) | {"num_warps": _tiling(max(width, phi_width))["num_warps"]},
    )
    return grads[0], grads[1]


def _padded(x: Tensor) -> int:
    return max(16, triton.next_power_of_2(x.shape[-1]))


def _index_dtype(count: int) -> torch.dtype:
    return torch.int32 if count < 2**31 else torch.int64
