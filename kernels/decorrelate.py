"""Barlow Twins with a temperature per pair of channels (Eq. 1.3, 2.3), a strip of the d × d pairs at a time.

The products are the library's: 𝒞 = x·yᵀ/N and r = φ(x)·φ(y)ᵀ of a strip into float32. One kernel passes over them once:
it sums the loss and what the statistics need, and leaves the slopes of the loss by 𝒞 and by r where 𝒞 and r stood. From
those come the gradients, four more products: six in all, as few as a dense pass has. They are formed with the loss,
since its gradient is one number a head; the backward pass only multiplies by it.

A strip is about as high as it is wide: the gradients of its rows are summed over the strips beside it, those of its
columns over the strips above it, and a sum costs traffic each time it is taken up again. All sums are float32, and
strips follow in one order.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import (
    PARTIALS,
    at_bound,
    omega,
    omega_slope,
    store_partial,
    summarise,
    temperature,
    temperature_slope,
)
from .launch import blocks, launched, power_of_two

# Bytes of 𝒞 and r at once.
WORKSPACE = 50 * 10**6
# The sides of strips are multiples of this, so that products have whole tiles and programs whole rows.
_SIDE = 128


@launched()
@triton.jit(do_not_specialize=["head", "heads", "rows", "first_row", "shift", "dim", "slot", "slots"])
def _decorrelate_elements(
    c, r, by_c, by_r, offset, sums, on, off,
    head, heads, rows, columns, first_row, shift, dim, slot, slots,
    scale, tau_min, tau_span, lambd, beta, half_d,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, SLOPES: tl.constexpr,
    M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss, statistics and slopes of M rows of a strip.

    `by_c` and `by_r` are the memory of `c` and `r`, read as the slopes' type: a row of slopes fills the first part of
    the row that it replaces, no element of which is written before the whole block has read it. Row i of the strip
    meets the diagonal in its column i + shift.
    """
    local = tl.program_id(1)
    head += local
    row = tl.program_id(0) * M + tl.arange(0, M)
    start_of = tl.arange(0, M) * columns
    corner = (local.to(tl.int64) * rows + tl.program_id(0) * M) * columns
    pitch: tl.constexpr = 32 // by_c.dtype.element_ty.primitive_bitwidth
    c += corner
    r += corner
    by_c += corner * pitch
    by_r += corner * pitch
    own = row + shift
    on_diagonal = (row < rows) & (own >= 0) & (own < columns)
    own_c = tl.load(c + start_of + own, on_diagonal, other=0.0)
    own_r = tl.load(r + start_of + own, on_diagonal, other=0.0)
    shifted = tl.load(offset).to(tl.float32) if HAS_OFFSET else 0.0
    centre = tau_min
    if ADAPTIVE:
        centre, _, _ = temperature(tl.load(r) - shifted, tau_min, tau_span)

    # Off the diagonal.
    value = 0.0
    score = 0.0
    c_sum = 0.0
    lean = 0.0
    squares = 0.0
    bounds = 0.0
    lowest = float("inf")
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        beside = inside & (own[:, None] != column[None, :])
        at = start_of[:, None] + column[None, :]
        s = scale * tl.where(beside, tl.load(c + at, inside, other=0.0), 0.0)
        if ADAPTIVE:
            tau, sigma, complement = temperature(tl.load(r + at, inside, other=0.0) - shifted, tau_min, tau_span)
        else:
            tau = tl.zeros((M, BLOCK), tl.float32) + tau_min
        inverse = 1.0 / tau
        weighted = lambd * s * inverse
        term = weighted * s
        if ADAPTIVE:
            by_tau = -weighted * s * inverse - beta * omega_slope(inverse, half_d)
            slope = tl.where(beside, by_tau * temperature_slope(sigma, complement, tau_span), 0.0)
            term -= tl.where(beside, beta * omega(tau, inverse, half_d), 0.0)
            deviation = tl.where(beside, tau - centre, 0.0)
            lean += tl.sum(deviation)
            squares += tl.sum(deviation * deviation)
            bounds += tl.sum(tl.where(beside, at_bound(sigma, complement), 0.0))
            if SLOPES and HAS_OFFSET:
                score += tl.sum(slope)
        value += tl.sum(term)
        c_sum += tl.sum(s)
        lowest = tl.minimum(lowest, tl.min(tl.where(beside, tau, float("inf"))))
        if SLOPES:
            # Other threads may not have read yet what stands where this one writes.
            tl.debug_barrier()
            to = pitch * start_of[:, None] + column[None, :]
            tl.store(by_c + to, (2.0 * scale * weighted).to(by_c.dtype.element_ty), inside)
            if ADAPTIVE:
                tl.store(by_r + to, slope.to(by_r.dtype.element_ty), inside)

    first = tl.program_id(0) * M + shift
    if (first < columns) & (first + M > 0):
        value, score, s, tau, bound = _diagonal(
            own_c, own_r, by_c, by_r, start_of, own, on_diagonal, value, score,
            shifted, scale, tau_min, tau_span, beta, half_d, ADAPTIVE, HAS_OFFSET, SLOPES, M,
        )  # fmt: skip
        one = tl.full((M,), 1.0, tl.float32)
        store_partial(
            on, head * dim + first_row + row, heads * dim, on_diagonal, one, s, tau, tl.zeros_like(one), tau, bound
        )

    place = head * slots + slot + tl.program_id(0)
    tl.store(sums + place, value)
    tl.store(sums + heads * slots + place, score)
    height = tl.minimum(rows - tl.program_id(0) * M, M)
    elements = (height * columns - tl.sum(on_diagonal.to(tl.int32))).to(tl.float32)
    squares -= lean * lean / tl.maximum(elements, 1.0)
    tau_sum, m2 = centre * elements + lean, tl.maximum(squares, 0.0)
    store_partial(off, place, heads * slots, True, elements, c_sum, tau_sum, m2, lowest, bounds)


@triton.jit
def _diagonal(
    c, r, by_c, by_r, start_of, own, on_diagonal, value, score,
    shifted, scale, tau_min, tau_span, beta, half_d,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, SLOPES: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Pairs of a channel with itself: their slopes are written; value and score with them, and s, τ and bound."""
    pitch: tl.constexpr = 32 // by_c.dtype.element_ty.primitive_bitwidth
    s = scale * c
    tau = tl.zeros((M,), tl.float32) + tau_min
    bound = tl.zeros((M,), tl.float32)
    if ADAPTIVE:
        tau, sigma, complement = temperature(r - shifted, tau_min, tau_span)
        bound = at_bound(sigma, complement)
    inverse = 1.0 / tau
    residual = 1.0 - s * inverse
    term = residual * residual
    to = pitch * start_of + own
    if SLOPES:
        tl.debug_barrier()
        tl.store(by_c + to, (-2.0 * scale * residual * inverse).to(by_c.dtype.element_ty), on_diagonal)
    if ADAPTIVE:
        term += beta * omega(tau, inverse, half_d)
        by_tau = 2.0 * residual * s * inverse * inverse + beta * omega_slope(inverse, half_d)
        slope = tl.where(on_diagonal, by_tau * temperature_slope(sigma, complement, tau_span), 0.0)
        if SLOPES:
            tl.store(by_r + to, slope.to(by_r.dtype.element_ty), on_diagonal)
            if HAS_OFFSET:
                score += tl.sum(slope)
    value += tl.sum(tl.where(on_diagonal, term, 0.0))
    return value, score, s, tau, bound


def decorrelate(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    tau_min: float,
    tau_max: float,
    lambd: float,
    beta: float,
    needs: tuple[bool, bool, bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Σ_l (1 − 𝒞_ll/τ_ll)² + λ·Σ_{l≠m} 𝒞_lm²/τ_lm + β·Σ_l Ω(τ_ll) − β·Σ_{l≠m} Ω(τ_lm) of every head, and its gradients.

    Args:
        x, y: (C, d, N), channel vectors standardised along the batch.
        phi_x, phi_y: (C, d, m), or None for a constant temperature.
        offset: 0-dim tensor subtracted from every r, or None.
        tau_min, tau_max, lambd, beta: range of τ, λ and β.
        needs: of which of the five tensors the gradient is needed.

    Returns:
        (C,) losses, and stats (5,) of `common.summarise` of 𝒞 and τ on the diagonal and off it, float32. The gradients
        of each head's loss by x, y, φ(x) and φ(y), those that are needed: bfloat16 as x, or else float32, as float16
        has no room for what the gradient of the losses would scale. Where the offset's is needed, (C,) sums of the
        slopes by r.
    """
    heads, dim, batch = x.shape
    dtype = x.dtype if x.dtype == torch.bfloat16 else torch.float32
    sides = ((x, y, needs[:2]), (phi_x, phi_y, needs[2:4]))
    pairs = [
        _pair(left, right, need, any(needs[:4]), dtype)
        for left, right, need in sides
        if left is not None and right is not None
    ]
    adaptive = len(pairs) == 2
    group, height, width = _strips(x, adaptive)
    across = _parts(dim, width)
    launch = _launch(x, adaptive, width)
    programs = blocks(dim, launch["M"])
    slots = programs * len(across)
    sums = torch.empty(2, heads, slots, device=x.device)
    on = torch.empty(PARTIALS, heads * dim, device=x.device)
    off = torch.empty(PARTIALS, heads * slots, device=x.device)

    def elements(strips: list[Tensor], some: slice, rows: slice, number: int) -> None:
        """Leave the slopes of a strip where its products stood; its columns are the part `number`."""
        size, height, width = strips[0].shape
        slopes = [strip.view(dtype) for strip in strips]
        slot = number * programs + rows.start // launch["M"]
        _decorrelate_elements[(blocks(height, launch["M"]), size)](
            strips[0], strips[-1], slopes[0], slopes[-1], sums if offset is None else offset, sums, on, off,
            some.start, heads, height, width, rows.start, rows.start - across[number].start, dim, slot, slots,
            1.0 / batch, tau_min, tau_max - tau_min, lambd, beta, 0.5 * dim,
            ADAPTIVE=adaptive, HAS_OFFSET=offset is not None, SLOPES=any(needs), **launch,
        )  # fmt: skip

    memory = group * height * width
    for some in _parts(heads, group):
        below = _sums_below(pairs, elements, some, _parts(dim, height), across, memory, dtype)
        for pair in pairs:
            # One leaves before the next one comes.
            pair.by_right.keep(below.pop(0), some, slice(0, dim))
    losses, scores = sums[0].sum(-1), sums[1].sum(-1) if needs[4] else None
    gradients = [gradient.whole for pair in pairs for gradient in (pair.by_left, pair.by_right)]
    by_x, by_y, by_phi_x, by_phi_y = (*gradients, None, None)[:4]
    return losses, summarise(on), summarise(off), by_x, by_y, by_phi_x, by_phi_y, scores


def _multiply(left: Tensor, right: Tensor, result: Tensor | None, begun: bool = False) -> None:
    """result = left·right in float32, added to what is there if that has `begun`; nothing without a result."""
    if result is None:
        return
    form: dict[str, Any] = {"out_dtype": torch.float32} if left.is_cuda and left.dtype != torch.float32 else {}
    if not form:
        left, right = left.float(), right.float()
    if begun:
        torch.baddbmm(result, left, right, out=result, **form)
    else:
        torch.bmm(left, right, out=result, **form)


class _Gradient:
    """The gradient of a table (C, d, width), whose parts are summed in float32; nothing unless it is `needed`.

    In another type it has its memory from the first part on that is complete: the sums of others stand beside it.
    """

    def __init__(self, table: Tensor, needed: bool, dtype: torch.dtype) -> None:
        self._shape, self._device, self._needed, self._dtype = table.shape, table.device, needed, dtype
        self.whole = self._empty() if needed and dtype == torch.float32 else None

    def begun(self, heads: slice, rows: slice) -> Tensor | None:
        """Where to sum a part."""
        if self.whole is not None and self._dtype == torch.float32:
            return self.whole[heads, rows]
        shape = (heads.stop - heads.start, rows.stop - rows.start, self._shape[2])
        return torch.empty(shape, device=self._device) if self._needed else None

    def keep(self, part: Tensor | None, heads: slice, rows: slice) -> None:
        """A part is complete."""
        if part is None or self._dtype == torch.float32:
            return
        if self.whole is None:
            self.whole = self._empty()
        self.whole[heads, rows] = part

    def _empty(self) -> Tensor:
        return torch.empty(self._shape, dtype=self._dtype, device=self._device)


class _Pair(NamedTuple):
    """A table of either side, what slopes are multiplied with for the other, and the gradients of both."""

    left: Tensor
    right: Tensor
    of_left: Tensor
    of_right: Tensor
    by_left: _Gradient
    by_right: _Gradient


def _pair(left: Tensor, right: Tensor, need: tuple[bool, ...], any_need: bool, dtype: torch.dtype) -> _Pair:
    of_left, of_right = (t.to(dtype) if any_need else t for t in (left, right))
    return _Pair(left, right, of_left, of_right, _Gradient(left, need[0], dtype), _Gradient(right, need[1], dtype))


def _sums_below(
    pairs: list[_Pair],
    elements: Callable[[list[Tensor], slice, slice, int], None],
    some: slice,
    down: list[slice],
    across: list[slice],
    memory: int,
    dtype: torch.dtype,
) -> list[Tensor | None]:
    """Pass over the strips of some heads; the sums of the gradients of the tables on the right.

    Args:
        pairs: x and y, and φ's.
        elements: turns a strip's products into slopes.
        some: heads.
        down, across: parts of the channels, the rows and columns of strips.
        memory: elements of the largest strip.
        dtype: of the slopes.
    """
    strips = torch.empty(len(pairs), memory, device=pairs[0].left.device)
    dim = down[-1].stop
    below = [pair.by_right.begun(some, slice(0, dim)) for pair in pairs]
    for rows in down:
        beside = [pair.by_left.begun(some, rows) for pair in pairs]
        for number, columns in enumerate(across):
            shape = tuple(part.stop - part.start for part in (some, rows, columns))
            formed = [strip[: math.prod(shape)].view(shape) for strip in strips]
            for pair, strip in zip(pairs, formed, strict=True):
                _multiply(pair.left[some, rows], pair.right[some, columns].mT, strip)
            elements(formed, some, rows, number)
            for pair, strip, by_left, by_right in zip(pairs, formed, beside, below, strict=True):
                slope = strip.view(dtype)[..., : shape[2]]
                _multiply(slope, pair.of_right[some, columns], by_left, columns.start > 0)
                part = None if by_right is None else by_right[:, columns]
                _multiply(slope.mT, pair.of_left[some, rows], part, rows.start > 0)
        for pair, part in zip(pairs, beside, strict=True):
            pair.by_left.keep(part, some, rows)
    return below


def _parts(size: int, part: int) -> list[slice]:
    return [slice(start, min(start + part, size)) for start in range(0, size, part)]


def _strips(x: Tensor, adaptive: bool) -> tuple[int, int, int]:
    """Heads, rows and columns of a strip; its float32 products fit in WORKSPACE if 128 × 128 of them do.

    On an H100 a product of 2048 × 1024 has a tile of 128 × 128 for nearly every multiprocessor, and the sums of
    gradients are taken up again as seldom as the memory allows.
    """
    dim = x.shape[1]
    key = tuning.key(x, tuning.form(adaptive))
    most = tuning.chosen("decorrelate.strips", key, {"ROWS": 2048, "COLUMNS": 2048}, x)
    pairs = WORKSPACE // (8 if adaptive else 4)
    width = _side(dim, min(most["COLUMNS"], pairs // _SIDE))
    height = _side(dim, min(most["ROWS"], pairs // width))
    return max(1, min(x.shape[0], pairs // (height * width))), height, width


def _side(dim: int, most: int) -> int:
    """The side of the fewest equal parts of `dim`, a multiple of _SIDE unless it is all."""
    parts = blocks(dim, max(_SIDE, most // _SIDE * _SIDE))
    return min(dim, blocks(blocks(dim, parts), _SIDE) * _SIDE)


def _launch(x: Tensor, adaptive: bool, width: int) -> dict[str, int]:
    """Launch parameters of `_decorrelate_elements`: whole rows where they fit in registers, 8 elements a thread.

    Left to itself ptxas spills a register or two to fit one more block.
    """
    block = max(512, min(2048, power_of_two(width)))
    key = tuning.key(x, f"{tuning.form(adaptive)}, {block} columns")
    default = {"BLOCK": block, "M": 2048 // block, "num_warps": 8, "maxnreg": 128}
    return tuning.chosen("decorrelate.elements", key, default, x)
