"""Temperatures at which the softmax of an anchor's negatives has a given perplexity.

H(softmax_T(s/τ)), the entropy in bits, grows with log₂ τ at the rate V·ln 2, V the variance of the exponents in bits.
What is wanted is H* = log₂(perplexity·|T|), or what is missing of the most there can be, D = log₂|T| − H, to be
D* = −log₂ perplexity. Newton's method is on the odds log(D/H), of which D is what counts where τ is large and H where
it is small: D falls as 1/τ² there, exactly for normal similarities, and H as an exponential here. It starts from the τ
of normal similarities with their variance, stays in the bracket, and halves that where a step is not half the one
before, so 32 steps are enough for any similarities; three or four are for random and for trained ones (counted in
float64 on the CPU). An end of the range is looked at once before the bracket is halved: where no τ has the perplexity,
two looks tell.

- `_perplexity_rows`: of the κ hardest, whose similarities it reads once and keeps, up to 1024 of them; longer rows are
  read again for each step.
- `_perplexity_tiles`: of all negatives. Similarities exist as tiles alone, so each look at an anchor's row forms all of
  it anew: a call costs as many forward products of the contrast as its steps and one, about four or five. Rows of one
  program wait for each other. A program has M anchors and all candidates, so few anchors leave most of a GPU idle.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .common import LOG2E, log2, reciprocal
from .dense.call import without
from .dense.forward import LANES, _by_lanes, _lane_sums
from .launch import blocks, launched, power_of_two
from .tile import is_touched, load_tile, products, rows_of, skip_of, touched_tiles

# Steps at most, and the step of log₂ τ that is the last one: its square, times a curvature of 1 to 10, is what is left.
STEPS = tl.constexpr(32)
LAST = tl.constexpr(2.0**-12)


@triton.jit
def _start(variance, lowest, highest, start):
    """log₂ of the τ at which as many normal similarities of that variance have the perplexity, within the range."""
    x = 0.5 * (tl.log2(variance) - start)
    x = tl.where(x > lowest, x, lowest)  # and of NaN
    return tl.where(x < highest, x, highest)


@triton.jit
def _base(x, top, mean):
    """log₂(e)/τ, and what similarities are taken from: exponents about 0 make D exact where they hardly differ."""
    scale = tl.exp2(-x) * LOG2E
    return scale, tl.where((top - mean) * scale < 16.0, mean, top)


@triton.jit
def _stepped(x, low, high, low_open, high_open, last, total, first, second, share, most, goal, odds, scale):
    """Rows one step on: log₂ τ, its bracket, whether its ends are yet to be looked at, and the size of the step.

    Args:
        total, first, second: Σ e, Σ e·l and Σ e·l² of the exponents l = log₂ e at x.
        share: 1/|T|.
        most, goal, odds, scale: log₂|T|, D*, log₂(D*/H*) and log₂(e)/log₂|T|.
    """
    going = last > LAST
    inverse = reciprocal(total)
    mean = first * inverse
    missing = mean - tl.log2(total * share)
    entropy = tl.maximum(most - missing, 0.0)
    variance = second * inverse - mean * mean
    flat = missing > goal
    low = tl.where(going & flat, x, low)
    high = tl.where(going & (flat == 0), x, high)
    low_open = low_open & (flat == 0)
    high_open = high_open & flat
    odds = log2(tl.maximum(missing, 0.0) * reciprocal(entropy), True) - odds
    to = x + odds * (missing * entropy * scale * reciprocal(variance))
    # There the side on which x lies is a matter of rounding.
    near = tl.abs(to - x) <= LAST
    to = tl.where(to > low, to, tl.where(near, x, low))  # and of NaN
    to = tl.where(to < high, to, tl.where(near, x, high))
    end = ((to <= low) & low_open) | ((to >= high) & high_open)
    slow = (to <= low) | (to >= high) | (tl.abs(to - x) > 0.5 * last)
    to = tl.where(near | end | (slow == 0), to, 0.5 * (low + high))
    last = tl.where(going, tl.abs(to - x), last)
    return tl.where(going, to, x), low, high, low_open, high_open, last


@triton.jit
def _store_temperatures(temperatures, at, inside, x, lowest, highest, tau_min, tau_max):
    """2ˣ, the ends of the range as they are."""
    tau = tl.where(x > lowest, tl.where(x < highest, tl.exp2(x), tau_max), tau_min)
    tl.store(temperatures + at, tau, inside)


@triton.jit
def _moments(s, shown, base, scale):
    """Of rows of similarities, where `shown`: e, e·l and e·l² of the exponents l = (s − base)·scale."""
    exponent = (s - base[:, None]) * scale[:, None]
    e = tl.where(shown, tl.exp2(exponent), 0.0)
    return e, e * exponent, e * exponent * exponent


@launched("rows")
@triton.jit
def _perplexity_rows(
    similarities, temperatures, rows, top_k, tau_min, tau_max, lowest, highest, start, most, goal, odds, scale,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """τ of each row of κ similarities. ONE: BLOCK holds a row; else ROWS is 1."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    lanes = tl.arange(0, BLOCK)[None, :]
    pointers = similarities + (row * top_k)[:, None] + lanes
    share = 1.0 / top_k
    # A row past the end is one of equal similarities.
    if ONE:
        shown = lanes < top_k
        s = tl.load(pointers, shown & inside[:, None], other=0.0)
        top = tl.max(tl.where(shown, s, float("-inf")), axis=1)
        mean = tl.sum(s, axis=1) * share
        deviation = tl.where(shown, s - mean[:, None], 0.0)
        variance = tl.sum(deviation * deviation, axis=1) * share
    else:
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        mean = tl.zeros((ROWS,), tl.float32)
        for at in range(0, top_k, BLOCK):
            shown = at + lanes < top_k
            s = tl.load(pointers + at, shown, other=0.0)
            top = tl.maximum(top, tl.max(tl.where(shown, s, float("-inf")), axis=1))
            mean += tl.sum(s, axis=1) * share
        variance = tl.zeros((ROWS,), tl.float32)
        for at in range(0, top_k, BLOCK):
            shown = at + lanes < top_k
            deviation = tl.where(shown, tl.load(pointers + at, shown, other=0.0) - mean[:, None], 0.0)
            variance += tl.sum(deviation * deviation, axis=1) * share
    x = _start(variance, lowest, highest, start)
    low = tl.zeros((ROWS,), tl.float32) + lowest
    high = tl.zeros((ROWS,), tl.float32) + highest
    low_open, high_open, last = inside, inside, high - low
    i = 0
    while (i < STEPS) & (tl.max(last, axis=0) > LAST):
        by_tau, base = _base(x, top, mean)
        if ONE:
            e, by_l, by_square = _moments(s, shown, base, by_tau)
            total, first, second = tl.sum(e, axis=1), tl.sum(by_l, axis=1), tl.sum(by_square, axis=1)
        else:
            total = tl.zeros((ROWS,), tl.float32)
            first = tl.zeros((ROWS,), tl.float32)
            second = tl.zeros((ROWS,), tl.float32)
            for at in range(0, top_k, BLOCK):
                more = at + lanes < top_k
                e, by_l, by_square = _moments(tl.load(pointers + at, more, other=0.0), more, base, by_tau)
                total += tl.sum(e, axis=1)
                first += tl.sum(by_l, axis=1)
                second += tl.sum(by_square, axis=1)
        x, low, high, low_open, high_open, last = _stepped(
            x, low, high, low_open, high_open, last, total, first, second, share, most, goal, odds, scale
        )
        i += 1
    _store_temperatures(temperatures, row, inside, x, lowest, highest, tau_min, tau_max)


@launched("rows", "count")
@triton.jit
def _perplexity_tiles(
    anchors, candidates, skip, temperatures, count, tau_min, tau_max, lowest, highest, start, most, goal, odds, scale,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """τ of M anchors over their `count` negatives; the first of its passes finds mean, variance and maximum."""
    head = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    inside = row < anchors.rows
    lanes = tl.arange(0, N)
    depth = tl.arange(0, DEPTH)
    anchor_tile = load_tile(anchors, head, row, depth)
    touched = touched_tiles(skip, row, anchors.rows, 0, N, N)
    columns = candidates.rows
    share = 1.0 / count

    tops = tl.full((M, LANES), float("-inf"), tl.float32)
    sums = tl.zeros((M, LANES), tl.float32)
    squares = tl.zeros((M, LANES), tl.float32)
    for tile in range(tl.cdiv(columns, N)):
        column = tile * N + lanes
        other = load_tile(candidates, head, column, depth)
        s = products(anchor_tile, other, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
        # From 1, where similar rows are: their variance is no difference of large sums.
        below = s - 1.0
        if ((tile + 1) * N > columns) | is_touched(touched, tile):
            s = tl.where((column < columns)[None, :], s, float("-inf"))
            s = without(skip, s, row[:, None], anchors.rows, column[None, :], float("-inf"))
            below = tl.where(s == float("-inf"), 0.0, below)
        tops = tl.maximum(tops, tl.max(tl.max(_by_lanes(s), axis=3), axis=1))
        sums += _lane_sums(_by_lanes(below))
        squares += _lane_sums(_by_lanes(below * below))
    top = tl.max(tops, axis=1)
    mean = tl.sum(sums, axis=1) * share
    variance = tl.sum(squares, axis=1) * share - mean * mean
    mean += 1.0

    x = _start(variance, lowest, highest, start)
    low = tl.zeros((M,), tl.float32) + lowest
    high = tl.zeros((M,), tl.float32) + highest
    # A row past the end is not waited for.
    low_open, high_open, last = inside, inside, tl.where(inside, high - low, 0.0)
    i = 0
    while (i < STEPS) & (tl.max(last, axis=0) > LAST):
        by_tau, base = _base(x, top, mean)
        total = tl.zeros((M, LANES), tl.float32)
        first = tl.zeros((M, LANES), tl.float32)
        second = tl.zeros((M, LANES), tl.float32)
        for tile in range(tl.cdiv(columns, N)):
            column = tile * N + lanes
            other = load_tile(candidates, head, column, depth)
            s = products(anchor_tile, other, anchors, row, candidates, column, head, DEPTH, WHOLE, PRECISION)
            exponent = (s - base[:, None]) * by_tau[:, None]
            masked = ((tile + 1) * N > columns) | is_touched(touched, tile)
            if masked:
                exponent = tl.where((column < columns)[None, :], exponent, float("-inf"))
                exponent = without(skip, exponent, row[:, None], anchors.rows, column[None, :], float("-inf"))
            e = tl.exp2(exponent)
            if masked:
                exponent = tl.where(exponent == float("-inf"), 0.0, exponent)
            part = e * exponent
            total += _lane_sums(_by_lanes(e))
            first += _lane_sums(_by_lanes(part))
            second += _lane_sums(_by_lanes(part * exponent))
        x, low, high, low_open, high_open, last = _stepped(
            x, low, high, low_open, high_open, last,
            tl.sum(total, axis=1), tl.sum(first, axis=1), tl.sum(second, axis=1), share, most, goal, odds, scale,
        )  # fmt: skip
        i += 1
    at = head.to(tl.int64) * anchors.rows + row
    _store_temperatures(temperatures, at, inside, x, lowest, highest, tau_min, tau_max)


def perplexity_of_chosen(similarities: Tensor, perplexity: float, tau_min: float, tau_max: float) -> Tensor:
    """Temperature of every row at which the softmax of its similarities has a perplexity.

    Args:
        similarities: (C, A, κ) float32, contiguous.
        perplexity: share of κ, above 0 and below 1; where it is less than one of them, τ is tau_min.
        tau_min, tau_max: range of τ.

    Returns:
        (C, A) float32.
    """
    heads, count, top_k = similarities.shape
    temperatures = torch.empty(heads, count, device=similarities.device)
    block = min(1024, max(32, power_of_two(top_k)))
    # Whole rows to a warp, since every thread that has of a row does what is done once a row; four, so that none waits.
    rows = min(4, max(1, 512 // block))
    _perplexity_rows[blocks(heads * count, rows),](
        similarities, temperatures, heads * count, top_k, tau_min, tau_max,
        *_settings_of(perplexity, top_k, tau_min, tau_max),
        ROWS=rows, BLOCK=block, ONE=top_k <= block, num_warps=max(1, block // 256),
    )  # fmt: skip
    return temperatures


def perplexity_of_all(
    anchors: Tensor, candidates: Tensor, skip: Tensor | None, perplexity: float, tau_min: float, tau_max: float
) -> Tensor:
    """As `perplexity_of_chosen`, over all candidates but the skipped ones.

    Args:
        anchors, candidates: (C, A, d) and (C, B, d), any strides.
        skip: (A, S) int64, distinct columns that are no negatives of the anchor, or None.
    """
    heads, count, width = anchors.shape
    temperatures = torch.empty(heads, count, device=anchors.device)
    tiling = _tiling(anchors, width)
    negatives = candidates.shape[1] - (0 if skip is None else skip.shape[1])
    _perplexity_tiles[blocks(count, int(tiling["M"])), heads](
        rows_of(anchors), rows_of(candidates), skip_of(skip, temperatures), temperatures, negatives, tau_min, tau_max,
        *_settings_of(perplexity, negatives, tau_min, tau_max),
        **tiling,
    )  # fmt: skip
    return temperatures


def _settings_of(perplexity: float, count: int, tau_min: float, tau_max: float) -> tuple[float, ...]:
    """lowest, highest, start, most, goal, odds and scale, as the kernels take them."""
    most, goal = math.log2(count), -math.log2(perplexity)
    bracket = math.log2(tau_min), math.log2(tau_max)
    if perplexity * count <= 1:  # less than one negative: every τ is too large
        return (*bracket, math.inf, most, math.inf, math.inf, 0.0)
    odds = math.log2(goal / (most - goal))
    return (*bracket, math.log2(2 * math.log(2) * goal), most, goal, odds, LOG2E.value / most)


def _tiling(x: Tensor, width: int) -> dict[str, int | bool | str]:
    """Launch parameters of `_perplexity_tiles`: small blocks, of which three fit where products are warp groups'."""
    whole = x.dtype != torch.float32 and width <= 128
    groups = common.capability(x)[0] == 9
    shape = {"M": 64, "N": 64 if whole and groups else 32, "DEPTH": 32 if x.dtype == torch.float32 else 64}
    if whole and width > 64:
        shape["DEPTH"] = 128
    launch = {"num_warps": 4, "num_stages": 3, "maxnreg": 168 if groups else 255}
    return {**shape, **launch, "WHOLE": whole, "PRECISION": common.dot_precision(x)}
