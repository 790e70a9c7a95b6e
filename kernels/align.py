"""Row-wise attraction: rows = −weight·s/τ + β·Ω(τ), s the cosine of paired rows (Eq. 1.2, 2.2).

Bound by memory: the forward pass reads x, y and their φ once, normalisation included; the backward pass reads
them once more and writes only the gradients that are asked for.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    EPS,
    LONGEST,
    PARTIALS,
    at_bound,
    contiguous_rows,
    omega,
    omega_slope,
    store_block_partial,
    summarise,
    temperature,
    temperature_slope,
)
from .launch import blocks, launched, power_of_two
from .tile import load_tile, rows_of


@launched("rows")
@triton.jit
def _align_forward(
    x, y, phi_x, phi_y, offset, result, saved, partials, tau_min, tau_span, weight, beta,
    ADAPTIVE: tl.constexpr, HAS_OFFSET: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < x.rows
    lanes = tl.arange(0, BLOCK)

    xx = tl.zeros((ROWS,), tl.float32)
    yy = tl.zeros((ROWS,), tl.float32)
    xy = tl.zeros((ROWS,), tl.float32)
    for start in range(0, x.width, BLOCK):
        a = load_tile(x, head, row, start + lanes).to(tl.float32)
        b = load_tile(y, head, row, start + lanes).to(tl.float32)
        xx += tl.sum(a * a, axis=1)
        yy += tl.sum(b * b, axis=1)
        xy += tl.sum(a * b, axis=1)
    scale_x = tl.full((ROWS,), 1.0, tl.float32)
    scale_y = scale_x
    if tl.max(tl.maximum(xx, yy)) > LONGEST * LONGEST:
        for start in range(0, x.width, BLOCK):
            a = load_tile(x, head, row, start + lanes).to(tl.float32)
            b = load_tile(y, head, row, start + lanes).to(tl.float32)
            scale_x = tl.minimum(scale_x, LONGEST / tl.max(tl.abs(a), axis=1))
            scale_y = tl.minimum(scale_y, LONGEST / tl.max(tl.abs(b), axis=1))
        xx = tl.zeros((ROWS,), tl.float32)
        yy = tl.zeros((ROWS,), tl.float32)
        xy = tl.zeros((ROWS,), tl.float32)
        for start in range(0, x.width, BLOCK):
            a = load_tile(x, head, row, start + lanes).to(tl.float32) * scale_x[:, None]
            b = load_tile(y, head, row, start + lanes).to(tl.float32) * scale_y[:, None]
            xx += tl.sum(a * a, axis=1)
            yy += tl.sum(b * b, axis=1)
            xy += tl.sum(a * b, axis=1)
    inverse_x = 1.0 / tl.maximum(tl.sqrt(xx), EPS)
    inverse_y = 1.0 / tl.maximum(tl.sqrt(yy), EPS)
    s = xy * inverse_x * inverse_y

    if ADAPTIVE:
        r = tl.zeros((ROWS,), tl.float32)
        for start in range(0, phi_x.width, BLOCK):
            a = load_tile(phi_x, head, row, start + lanes).to(tl.float32)
            b = load_tile(phi_y, head, row, start + lanes).to(tl.float32)
            r += tl.sum(a * b, axis=1)
        if HAS_OFFSET:
            r -= tl.load(offset).to(tl.float32)
        tau, sigma, complement = temperature(r, tau_min, tau_span)
        inverse = 1.0 / tau
        half_d = 0.5 * x.width
        value = -weight * s * inverse + beta * omega(tau, inverse, half_d)
        by_tau = weight * s * inverse * inverse + beta * omega_slope(inverse, half_d)
        by_r = by_tau * temperature_slope(sigma, complement, tau_span)
        bound = at_bound(sigma, complement)
    else:
        tau = tl.full((ROWS,), tau_min, tl.float32)
        inverse = 1.0 / tau
        value = -weight * s * inverse
        by_r = tl.zeros((ROWS,), tl.float32)
        bound = by_r

    flat = head.to(tl.int64) * x.rows + row
    count = heads.to(tl.int64) * x.rows
    tl.store(result + flat, value, inside)
    tl.store(saved + flat, s, inside)
    tl.store(saved + count + flat, inverse_x, inside)
    tl.store(saved + 2 * count + flat, inverse_y, inside)
    tl.store(saved + 3 * count + flat, -weight * inverse, inside)
    tl.store(saved + 4 * count + flat, -by_r, inside)
    tl.store(saved + 5 * count + flat, scale_x, inside)
    tl.store(saved + 6 * count + flat, scale_y, inside)

    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    centre = tl.sum(tl.where(row == tl.min(row), tau, 0.0))
    store_block_partial(partials, program, heads * tl.num_programs(0), inside, s, tau, bound, centre)


@launched()  # for any number of rows it takes 25 % more registers at d = 128
@triton.jit
def _align_backward(
    gradient, saved, x, y, phi_x, phi_y, grad_x, grad_y, grad_phi_x, grad_phi_y,
    X: tl.constexpr, Y: tl.constexpr, PHI_X: tl.constexpr, PHI_Y: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < x.rows
    lanes = tl.arange(0, BLOCK)
    flat = head.to(tl.int64) * x.rows + row
    count = tl.num_programs(1).to(tl.int64) * x.rows
    g = tl.load(gradient + flat, inside, other=0.0)

    if X or Y:
        s = tl.load(saved + flat, inside, other=0.0)
        inverse_x = tl.load(saved + count + flat, inside, other=0.0)
        inverse_y = tl.load(saved + 2 * count + flat, inside, other=0.0)
        by_s = g * tl.load(saved + 3 * count + flat, inside, other=0.0)
        # Below EPS the norm is a constant, so nothing is projected out.
        along_x = tl.where(inverse_x < 1.0 / EPS, s, 0.0) * inverse_x
        along_y = tl.where(inverse_y < 1.0 / EPS, s, 0.0) * inverse_y
        scale_x = tl.load(saved + 5 * count + flat, inside, other=0.0)[:, None]
        scale_y = tl.load(saved + 6 * count + flat, inside, other=0.0)[:, None]
        for start in range(0, x.width, BLOCK):
            column = start + lanes
            a = load_tile(x, head, row, column).to(tl.float32) * scale_x
            b = load_tile(y, head, row, column).to(tl.float32) * scale_y
            if X:
                value = (by_s * inverse_x)[:, None] * (b * inverse_y[:, None] - a * along_x[:, None])
                _store_rows(grad_x, value * scale_x, flat, inside, column, x.width)
            if Y:
                value = (by_s * inverse_y)[:, None] * (a * inverse_x[:, None] - b * along_y[:, None])
                _store_rows(grad_y, value * scale_y, flat, inside, column, x.width)

    if PHI_X or PHI_Y:
        by_r = (-g * tl.load(saved + 4 * count + flat, inside, other=0.0))[:, None]
        for start in range(0, phi_x.width, BLOCK):
            column = start + lanes
            if PHI_X:
                value = by_r * load_tile(phi_y, head, row, column).to(tl.float32)
                _store_rows(grad_phi_x, value, flat, inside, column, phi_x.width)
            if PHI_Y:
                value = by_r * load_tile(phi_x, head, row, column).to(tl.float32)
                _store_rows(grad_phi_y, value, flat, inside, column, phi_x.width)


@triton.jit
def _store_rows(out, value, flat, inside, column, width):
    """Rows `flat` of a contiguous tensor with rows of `width`."""
    at = out + flat[:, None] * width + column[None, :]
    tl.store(at, value.to(out.dtype.element_ty), inside[:, None] & (column < width)[None, :])


FACTORS, BY_OFFSET = 7, 4
"""Numbers a row that the backward pass needs, and the place of ∂rows/∂offset among them."""


@functools.cache
def _tiling(width: int) -> dict[str, int]:
    """About 2048 elements of each tensor per program: enough loads in flight, few enough registers."""
    block = max(16, min(2048, power_of_two(width)))
    return {"ROWS": max(1, 2048 // block), "BLOCK": block, "num_warps": 4}


def align_forward(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    tau_min: float,
    tau_max: float,
    weight: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attraction of paired rows x, y (C, N, d), φ (C, N, m) or None for a constant temperature.

    Returns:
        rows (C, N) float32; factors (7, C, N) for `align_backward`: s, 1/‖x‖, 1/‖y‖, ∂rows/∂s, ∂rows/∂offset,
        which is −∂rows/∂r, and what x and y were scaled by before the norm, 1 but for rows too long to be squared;
        stats (5,) of `common.summarise`.
    """
    heads, n, _ = x.shape
    phi = (x, y) if phi_x is None or phi_y is None else (phi_x, phi_y)
    inputs = [rows_of(contiguous_rows(tensor)) for tensor in (x, y, *phi)]
    tiling = _tiling(max(inputs[0].width, inputs[2].width))
    grid = (blocks(n, tiling["ROWS"]), heads)
    rows = torch.empty(heads, n, device=x.device)
    factors = torch.empty(FACTORS, heads, n, device=x.device)
    partials = torch.empty(PARTIALS, grid[0] * grid[1], device=x.device)
    _align_forward[grid](
        *inputs,
        x if offset is None else offset,
        rows,
        factors,
        partials,
        tau_min,
        tau_max - tau_min,
        weight,
        beta,
        ADAPTIVE=phi_x is not None,
        HAS_OFFSET=offset is not None,
        **tiling,
    )
    return rows, factors, summarise(partials)


def align_backward(
    gradient: Tensor,
    factors: Tensor,
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, y, φ(x) and φ(y), each only if `needs` says so.

    Args:
        gradient: (C, N), of the rows.
        factors: of `align_forward`.
        x, y, phi_x, phi_y: as in `align_forward`.
        needs: which of the four gradients are needed.
    """
    heads, n, _ = x.shape
    tensors = (x, y, x if phi_x is None else phi_x, y if phi_y is None else phi_y)
    inputs = [rows_of(contiguous_rows(tensor)) for tensor in tensors]
    x_grad, y_grad, phi_x_grad, phi_y_grad = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if need else None
        for tensor, need in zip(tensors, needs, strict=True)
    )
    grads = (x_grad, y_grad, phi_x_grad, phi_y_grad)
    tiling = _tiling(max(inputs[0].width, inputs[2].width))
    _align_backward[blocks(n, tiling["ROWS"]), heads](
        gradient.contiguous(),
        factors,
        *inputs,
        *(factors if grad is None else grad for grad in grads),
        *needs,
        **tiling,
    )
    return grads
