"""Barlow Twins with a temperature per pair of channels (Eq. 1.3, 2.3), without a d × d matrix in memory.

Forward: each program forms a tile of 𝒞 = x·yᵀ/N and of r, and leaves its share of the loss. Backward: tiles are
formed again, a strip of rows at a time; the strip of slopes (rows × d) is multiplied with y and φ(y) by the library's
matrix product. Rows are N = 1024 to 4096 long, so keeping their gradient in registers, as `dense` does, would form
each tile N/128 times. The loss is symmetric in (x, y), so the gradients of y and φ(y) are those of x and φ(x) with
the arguments exchanged: no accumulation across strips.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    PARTIALS,
    at_bound,
    dot_precision,
    omega,
    omega_slope,
    store_block_partial,
    summarise,
    temperature,
    temperature_slope,
)
from .tile import Rows, rows_of, streamed_products

# Bytes of slopes at once.
WORKSPACE = 32 * 2**20


@triton.jit
def _pair(
    x, y, phi_x, phi_y, offset, row, column, head, scale, tau_min, tau_span,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of 𝒞, τ, σ(−r) and 1 − σ(−r), and its first τ."""
    c = scale * streamed_products(x, row, y, column, head, DEPTH, PRECISION)
    if ADAPTIVE:
        r = streamed_products(phi_x, row, phi_y, column, head, DEPTH, PRECISION)
        if HAS_OFFSET:
            r -= tl.load(offset).to(tl.float32)
        tau, sigma, complement = temperature(r, tau_min, tau_span)
        corner = (row == tl.min(row))[:, None] & (column == tl.min(column))[None, :]
        first, _, _ = temperature(tl.sum(tl.where(corner, r, 0.0)), tau_min, tau_span)
    else:
        first = tau_min
        tau = tl.zeros(c.shape, tl.float32) + tau_min
        sigma = tl.zeros(c.shape, tl.float32) + 0.5
        complement = sigma
    return c, tau, sigma, complement, first


@triton.jit
def _forward(
    x, y, phi_x, phi_y, offset, result, on, off, scale, tau_min, tau_span, lambd, beta, half_d,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    c, tau, sigma, complement, centre = _pair(
        x, y, phi_x, phi_y, offset, row, column, head, scale, tau_min, tau_span, ADAPTIVE, HAS_OFFSET, DEPTH,
        PRECISION,
    )  # fmt: skip
    inverse = 1.0 / tau
    diagonal = row[:, None] == column[None, :]
    residual = 1.0 - c * inverse
    value = tl.where(diagonal, residual * residual, lambd * c * c * inverse)
    if ADAPTIVE:
        penalty = beta * omega(tau, inverse, half_d)
        value += tl.where(diagonal, penalty, -penalty)
    inside = (row < x.rows)[:, None] & (column < y.rows)[None, :]
    tile = (head * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
    tiles = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
    tl.store(result + tile, tl.sum(tl.where(inside, value, 0.0)))
    bound = at_bound(sigma, complement)
    store_block_partial(on, tile, tiles, inside & diagonal, c, tau, bound, centre)
    store_block_partial(off, tile, tiles, inside & (row[:, None] != column[None, :]), c, tau, bound, centre)


@triton.jit
def _slopes(
    gradient, x, y, phi_x, phi_y, offset, by_c, by_r, scores, first,
    scale, tau_min, tau_span, lambd, beta, half_d,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Slopes of the loss by x·yᵀ and r, for the rows of x, which are rows `first` on of the whole; (C, rows, d)."""
    head = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    c, tau, sigma, complement, _ = _pair(
        x, y, phi_x, phi_y, offset, row, column, head, scale, tau_min, tau_span, ADAPTIVE, HAS_OFFSET, DEPTH,
        PRECISION,
    )  # fmt: skip
    g = tl.load(gradient + head)
    inverse = 1.0 / tau
    diagonal = (first + row)[:, None] == column[None, :]
    residual = 1.0 - c * inverse
    slope = g * scale * tl.where(diagonal, -2.0 * residual * inverse, 2.0 * lambd * c * inverse)
    inside = (row < x.rows)[:, None] & (column < y.rows)[None, :]
    at = (head.to(tl.int64) * x.rows + row)[:, None] * y.rows + column[None, :]
    tl.store(by_c + at, slope.to(by_c.dtype.element_ty), inside)
    if ADAPTIVE:
        penalty = beta * omega_slope(inverse, half_d)
        by_tau = tl.where(
            diagonal, 2.0 * residual * c * inverse * inverse + penalty, -lambd * c * c * inverse * inverse - penalty
        )
        slope = g * by_tau * temperature_slope(sigma, complement, tau_span)
        tl.store(by_r + at, slope.to(by_r.dtype.element_ty), inside)
        if HAS_OFFSET:
            tile = (head * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
            tl.store(scores + tile, tl.sum(tl.where(inside, slope, 0.0)))


def decorrelate_forward(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    tau_min: float,
    tau_max: float,
    lambd: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_l (1 − 𝒞_ll/τ_ll)² + λ·Σ_{l≠m} 𝒞_lm²/τ_lm + β·Σ_l Ω(τ_ll) − β·Σ_{l≠m} Ω(τ_lm) of every head.

    Args:
        x, y: (C, d, N), channel vectors standardised along the batch.
        phi_x, phi_y: (C, d, m), or None for a constant temperature.
        offset: 0-dim tensor subtracted from every r, or None.
        tau_min, tau_max, lambd, beta: range of τ, λ and β.

    Returns:
        (C,) losses, and stats (5,) of `common.summarise` of 𝒞 and τ on the diagonal and off it. All float32.
    """
    heads = x.shape[0]
    operands = _operands(x, y, phi_x, phi_y)
    tiling = _tiling(x, phi_x is not None, forward=True)
    grid = (*(triton.cdiv(x.shape[1], int(tiling[side])) for side in "MN"), heads)
    tiles = grid[0] * grid[1]
    result = torch.empty(heads, tiles, device=x.device)
    on, off = (torch.empty(PARTIALS, heads * tiles, device=x.device) for _ in range(2))
    _forward[grid](
        *operands,
        result if offset is None else offset,
        result,
        on,
        off,
        *_settings(x, tau_min, tau_max, lambd, beta),
        ADAPTIVE=phi_x is not None,
        HAS_OFFSET=offset is not None,
        **tiling,
    )
    return result.sum(1), summarise(on), summarise(off)


def decorrelate_backward(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    tau_min: float,
    tau_max: float,
    lambd: float,
    beta: float,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """Gradients of x, y, φ(x) and φ(y), each only if `needs` says so.

    Args:
        gradient: (C,), of the losses.
        needs: which of the four gradients are wanted.

        The rest is as in `decorrelate_forward`.

    Returns:
        The gradients, and Σ gradient·∂loss/∂r (0-dim; only with an offset and the third need, else unset).
    """
    gradient = gradient.contiguous()
    settings = _settings(x, tau_min, tau_max, lambd, beta)
    of_x = of_y = of_phi_x = of_phi_y = None
    score = gradient.new_empty(())
    if needs[0] or needs[2]:
        of_x, of_phi_x, score = _gradients(gradient, x, y, phi_x, phi_y, offset, settings, needs[0], needs[2])
    if needs[1] or needs[3]:
        of_y, of_phi_y, _ = _gradients(gradient, y, x, phi_y, phi_x, offset, settings, needs[1], needs[3])
    return of_x, of_y, of_phi_x, of_phi_y, score


def _gradients(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    settings: tuple[float, ...],
    need_x: bool,
    need_phi: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of x and φ(x), and the sum of all slopes by r."""
    heads, dim, _ = x.shape
    # float16 has no room for slopes as large as 1/τ², nor for ones as small as 1/N.
    dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
    tiling = _tiling(x, phi_x is not None, forward=False)
    m = int(tiling["M"])
    strip = max(m, WORKSPACE // (2 * heads * dim * dtype.itemsize) // m * m)
    of_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_x else None
    of_phi = torch.empty(phi_x.shape, dtype=phi_x.dtype, device=x.device) if need_phi and phi_x is not None else None
    table, phi_table = y.to(dtype), None if phi_y is None else phi_y.to(dtype)
    score = torch.zeros((), device=x.device)
    for first in range(0, dim, strip):
        rows = slice(first, min(first + strip, dim))
        size = rows.stop - first
        by_c = torch.empty(heads, size, dim, dtype=dtype, device=x.device)
        by_r = torch.empty_like(by_c) if phi_x is not None else by_c
        grid = (triton.cdiv(size, m), triton.cdiv(dim, int(tiling["N"])), heads)
        scores = torch.empty(grid, device=x.device)
        _slopes[grid](
            gradient,
            *_operands(x[:, rows], y, None if phi_x is None else phi_x[:, rows], phi_y),
            scores if offset is None else offset,
            by_c,
            by_r,
            scores,
            first,
            *settings,
            ADAPTIVE=phi_x is not None,
            HAS_OFFSET=offset is not None,
            **tiling,
        )
        if of_x is not None:
            of_x[:, rows] = by_c @ table
        if of_phi is not None and phi_table is not None:
            of_phi[:, rows] = by_r @ phi_table
        if offset is not None:
            score += scores.sum()
    return of_x, of_phi, score


def _operands(x: Tensor, y: Tensor, phi_x: Tensor | None, phi_y: Tensor | None) -> tuple[Rows, ...]:
    return tuple(rows_of(tensor) for tensor in (x, y, x if phi_x is None else phi_x, y if phi_y is None else phi_y))


def _settings(x: Tensor, tau_min: float, tau_max: float, lambd: float, beta: float) -> tuple[float, ...]:
    """1/N, tau_min, tau_span, lambd, beta and d/2, as the kernels take them."""
    return 1.0 / x.shape[2], tau_min, tau_max - tau_min, lambd, beta, 0.5 * x.shape[1]


def _tiling(x: Tensor, adaptive: bool, forward: bool) -> dict[str, int | str]:
    """Launch parameters: the largest tiles whose 𝒞, r and τ, and statistics or float32 slopes, fit in registers."""
    if x.dtype == torch.float32:
        shape = {"M": 64, "N": 32, "DEPTH": 32, "num_warps": 8}
    elif forward or adaptive or x.dtype == torch.float16:
        # Of what fits without a stack; the slopes of d = 8192 on an H100: 2.37 ms by 128 x 64, 1.94 by this.
        shape = {"M": 64 if adaptive else 128, "N": 64, "DEPTH": 64, "num_warps": 8}
    else:
        shape = {"M": 128, "N": 128, "DEPTH": 64, "num_warps": 16}
    return {**shape, "num_stages": 3, "PRECISION": dot_precision(x)}
