"""Sums of gathered rows, weighted by the slopes: the gradients of anchors and of candidates."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tuning
from ..common import contiguous_rows, offset_gradient
from ..launch import blocks, launched
from ..tile import load_tile, rows_of
from .tiling import gather_tiling, padded

# Fewer pairs a candidate than this, and a program takes several candidates.
_FEW = 4


@launched("count", "pairs", "candidates", "lowest")
@triton.jit
def _topk_keys(chosen, keys, count, pairs, candidates, lowest, BLOCK: tl.constexpr):
    """head·candidates + column of every pair, less `lowest`, as the dtype of `keys` holds them; `pairs` to a head."""
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = pair // pairs * candidates + tl.load(chosen + pair, pair < count, other=0) + lowest
    tl.store(keys + pair, key.to(keys.dtype.element_ty), pair < count)


@launched("rows", "count", "lowest", "steps")
@triton.jit
def _topk_starts(keys, starts, rows, count, lowest, steps, BLOCK: tl.constexpr):
    """For each of the rows + 1 first ones of the sorted keys how many are smaller, by bisection."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros((BLOCK,), tl.int64)
    high = low + count
    for _ in range(steps):
        middle = (low + high) // 2
        between = low < high
        smaller = tl.load(keys + middle, between, other=0).to(tl.int64) < row + lowest
        low = tl.where(between & smaller, middle + 1, low)
        high = tl.where(between & (smaller == 0), middle, high)
    tl.store(starts + row, low.to(starts.dtype.element_ty), row <= rows)


@triton.jit
def _listed(order, place, end, gradient, head, sources, top_k, NARROW: tl.constexpr):
    """Pairs of a candidate from its list: the pair, its anchor's row and gradient; nothing from `end` on."""
    mask = place < end
    pair = tl.load(order + place, mask, other=0)
    if NARROW:
        pair = pair.to(tl.int32)
    anchor = pair // top_k
    # Past the end a row that load_tile takes for zeros: pair 0 is of head 0, and lies before this head's rows.
    return pair, tl.where(mask, anchor - head * sources, sources), tl.load(gradient + anchor, mask, other=0.0)


@launched("rows", "sources")
@triton.jit
def _topk_sums(
    gradient, slope_s, slope_r, chosen, order, starts, x, phi, grad_x, grad_phi, scores, sources, top_k,
    BY_ROW: tl.constexpr, BY_COLUMN: tl.constexpr, SCORES: tl.constexpr, X: tl.constexpr, PHI: tl.constexpr,
    NARROW: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PHI_WIDTH: tl.constexpr,
):  # fmt: skip
    """Row of grad_x: Σ gradient·slope_s·x, of grad_phi: Σ gradient·slope_r·phi, over the pairs of one row.

    Pair (head·sources + anchor)·κ + entry. BY_ROW: the row is an anchor with κ pairs, and x, phi are the candidates'.
    BY_COLUMN: it is a candidate, its pairs are order[starts[row]:] up to the next start, and x, phi are the anchors'.
    Both: it is both, of one table. SCORES: also Σ gradient·slope_r of the anchor's pairs.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    flat = head.to(tl.int64) * tl.num_programs(0) + row
    lanes = tl.arange(0, WIDTH)
    phi_lanes = tl.arange(0, PHI_WIDTH)
    x_sum = tl.zeros((BLOCK, WIDTH), tl.float32)
    phi_sum = tl.zeros((BLOCK, PHI_WIDTH), tl.float32)
    if BY_ROW:
        own = tl.load(gradient + flat)
        score = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, top_k, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            pair = flat * top_k + entry
            source = tl.load(chosen + pair, entry < top_k, other=sources)
            if X:
                weight = own * tl.load(slope_s + pair, entry < top_k, other=0.0)
                x_sum += weight[:, None] * load_tile(x, head, source, lanes).to(tl.float32)
            if PHI or SCORES:
                weight = own * tl.load(slope_r + pair, entry < top_k, other=0.0)
                score += weight
            if PHI:
                phi_sum += weight[:, None] * load_tile(phi, head, source, phi_lanes).to(tl.float32)
        if SCORES:
            tl.store(scores + flat, tl.sum(score))
    if BY_COLUMN:
        begin = tl.load(starts + flat).to(tl.int64)
        end = tl.load(starts + flat + 1).to(tl.int64)
        for start in range(0, (end - begin).to(tl.int32), BLOCK):
            place = begin + start + tl.arange(0, BLOCK)
            pair, source, g = _listed(order, place, end, gradient, head, sources, top_k, NARROW)
            if X:
                weight = g * tl.load(slope_s + pair, place < end, other=0.0)
                x_sum += weight[:, None] * load_tile(x, head, source, lanes).to(tl.float32)
            if PHI:
                weight = g * tl.load(slope_r + pair, place < end, other=0.0)
                phi_sum += weight[:, None] * load_tile(phi, head, source, phi_lanes).to(tl.float32)
    if X:
        value = tl.sum(x_sum, axis=0)
        tl.store(grad_x + flat * x.width + lanes, value.to(grad_x.dtype.element_ty), lanes < x.width)
    if PHI:
        value = tl.sum(phi_sum, axis=0)
        out = grad_phi + flat * phi.width + phi_lanes
        tl.store(out, value.to(grad_phi.dtype.element_ty), phi_lanes < phi.width)


@launched("rows", "sources", "candidates")
@triton.jit
def _topk_few_sums(
    gradient, slope_s, slope_r, order, starts, x, phi, grad_x, grad_phi, candidates, sources, top_k,
    X: tl.constexpr, PHI: tl.constexpr, NARROW: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PHI_WIDTH: tl.constexpr,
):  # fmt: skip
    """`_topk_sums` BY_COLUMN for candidates with few pairs or none: COLUMNS of them a program.

    Their lists lie one after the other. A product with a matrix of weights, each in the row of its candidate, adds
    what belongs together.
    """
    head = tl.program_id(1)
    first = tl.program_id(0) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    inside = column < candidates
    heads_first = head.to(tl.int64) * candidates
    end = tl.load(starts + heads_first + tl.minimum(first + COLUMNS, candidates)).to(tl.int64)
    begins = tl.load(starts + heads_first + column, inside, other=end).to(tl.int64)
    ends = tl.load(starts + heads_first + column + 1, inside, other=end).to(tl.int64)
    begin = tl.load(starts + heads_first + first).to(tl.int64)
    lanes = tl.arange(0, WIDTH)
    phi_lanes = tl.arange(0, PHI_WIDTH)
    x_sum = tl.zeros((COLUMNS, WIDTH), tl.float32)
    phi_sum = tl.zeros((COLUMNS, PHI_WIDTH), tl.float32)
    for start in range(0, (end - begin).to(tl.int32), BLOCK):
        place = begin + start + tl.arange(0, BLOCK)
        pair, source, g = _listed(order, place, end, gradient, head, sources, top_k, NARROW)
        mine = (place[None, :] >= begins[:, None]) & (place[None, :] < ends[:, None])
        if X:
            weight = g * tl.load(slope_s + pair, place < end, other=0.0)
            tile = load_tile(x, head, source, lanes).to(tl.float32)
            x_sum = tl.dot(tl.where(mine, weight[None, :], 0.0), tile, x_sum, input_precision="ieee")
        if PHI:
            weight = g * tl.load(slope_r + pair, place < end, other=0.0)
            tile = load_tile(phi, head, source, phi_lanes).to(tl.float32)
            phi_sum = tl.dot(tl.where(mine, weight[None, :], 0.0), tile, phi_sum, input_precision="ieee")
    flat = (heads_first + column)[:, None]
    if X:
        mask = inside[:, None] & (lanes < x.width)[None, :]
        tl.store(grad_x + flat * x.width + lanes[None, :], x_sum.to(grad_x.dtype.element_ty), mask)
    if PHI:
        mask = inside[:, None] & (phi_lanes < phi.width)[None, :]
        tl.store(grad_phi + flat * phi.width + phi_lanes[None, :], phi_sum.to(grad_phi.dtype.element_ty), mask)


def topk_backward(
    gradient: Tensor,
    slope_s: Tensor,
    slope_r: Tensor,
    chosen: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    needs: tuple[bool, bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of anchors, candidates, φ(anchors), φ(candidates) and the offset, each only if `needs` says so.

    Args:
        gradient: (C, A), of the rows.
        slope_s, slope_r: of `topk_forward`.
        chosen: of `select.hardest`.
        anchors, phi_anchors: (C, A, d), (C, A, m).
        candidates, phi_candidates: (C, B, d), (C, B, m); None if they are the anchors and φ(anchors), and what these
            get is the sum of both then.
        offset: 0-dim tensor, or None.
        needs: which of the five gradients are needed.
    """
    gradient = gradient.contiguous()
    pairs = (gradient, slope_s, slope_r, chosen)
    scores = torch.empty_like(gradient) if needs[4] else None
    of_candidates = of_phi_candidates = None
    if candidates is None:
        lists = _lists(chosen, anchors.shape[1]) if needs[0] or needs[2] else None
        tables = (anchors if needs[0] else None, phi_anchors if needs[2] else None)
        of_anchors, of_phi_anchors = _sums(pairs, lists, *tables, scores, chosen.shape[1], by_row=True)
    else:
        tables = (candidates if needs[0] else None, phi_candidates if needs[2] else None)
        of_anchors, of_phi_anchors = _sums(pairs, None, *tables, scores, chosen.shape[1], by_row=True)
        if needs[1] or needs[3]:
            count = candidates.shape[1]
            tables = (anchors if needs[1] else None, phi_anchors if needs[3] else None)
            lists = _lists(chosen, count)
            of_candidates, of_phi_candidates = _sums(pairs, lists, *tables, None, count, by_row=False)
    of_offset = None if offset is None or scores is None else offset_gradient(scores, offset)
    return of_anchors, of_candidates, of_phi_anchors, of_phi_candidates, of_offset


def _lists(chosen: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """The pairs sorted by head and column, stably, and where each candidate's begin: (C·A·κ,) and
    (C·candidates + 1,)."""
    heads, count, device = chosen.shape[0], chosen.numel(), chosen.device
    total = heads * candidates
    # The time of a radix sort grows with the bytes of a key.
    dtype, lowest = (torch.int16, -(2**15)) if total <= 2**16 else (_index_dtype(total), 0)
    keys = torch.empty(count, dtype=dtype, device=device)
    _topk_keys[blocks(count, 1024),](chosen, keys, count, max(1, count // heads), candidates, lowest, BLOCK=1024)
    keys, order = keys.sort(stable=True)
    starts = torch.empty(total + 1, dtype=_index_dtype(count), device=device)
    _topk_starts[blocks(total + 1, 128),](keys, starts, total, count, lowest, count.bit_length(), BLOCK=128)
    return order, starts


def _sums(
    pairs: tuple[Tensor, ...],
    lists: tuple[Tensor, Tensor] | None,
    x: Tensor | None,
    phi: Tensor | None,
    scores: Tensor | None,
    count: int,
    by_row: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Sums over the pairs of `count` rows a head; a table that is None needs no gradient, scores that are are not."""
    gradient, slope_s, slope_r, chosen = pairs
    if x is None and phi is None and scores is None:
        return None, None
    heads, _, top_k = chosen.shape
    tables = [None if table is None else contiguous_rows(table) for table in (x, phi)]
    grads = [
        None if table is None else torch.empty(heads, count, table.shape[2], dtype=table.dtype, device=table.device)
        for table in tables
    ]
    one = next((table for table in tables if table is not None), slope_s)
    width, phi_width = (16 if table is None else padded(table) for table in tables)
    order, starts = (chosen, chosen) if lists is None else lists
    operands = [*(rows_of(one if table is None else table) for table in tables)]
    outputs = [*(one if grad is None else grad for grad in grads)]
    flags = {"X": x is not None, "PHI": phi is not None, "NARROW": chosen.numel() < 2**31}
    widths = {"WIDTH": width, "PHI_WIDTH": phi_width}
    widest = max(width, phi_width)
    if not by_row and chosen.shape[1] * top_k < _FEW * count and widest <= 512:
        default = {"COLUMNS": 16, "BLOCK": 16, "num_warps": max(1, widest // 64)}
        tiling = tuning.chosen("topk.columns", tuning.key(one, f"d={widest}", "columns"), default, one)
        _topk_few_sums[blocks(count, tiling["COLUMNS"]), heads](
            gradient, slope_s, slope_r, order, starts, *operands, *outputs, count, one.shape[1], top_k,
            **flags, **widths, **tiling,
        )  # fmt: skip
    else:
        kind = "columns" if not by_row else "rows" if lists is None else "one table"
        _topk_sums[count, heads](
            gradient, slope_s, slope_r, chosen, order, starts, *operands, *outputs,
            gradient if scores is None else scores, one.shape[1], top_k,
            BY_ROW=by_row, BY_COLUMN=lists is not None, SCORES=scores is not None, **flags, **widths,
            **gather_tiling("topk.sums", one, widest, kind),
        )  # fmt: skip
    return grads[0], grads[1]


def _index_dtype(count: int) -> torch.dtype:
    return torch.int32 if count < 2**31 else torch.int64
