"""Row-wise attraction: rows = −weight·s/τ + β·Ω(τ), s the cosine of paired rows (Eq. 1.2, 2.2).

Bound by memory: the forward pass reads x, y and their φ once, normalisation included; the backward pass reads
them once more and writes only the gradients that are asked for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    PARTIALS,
    at_bound,
    omega,
    omega_slope,
    store_partial,
    summarise,
    temperature,
    temperature_slope,
    unit_rows,
)

# As torch.nn.functional.normalize: x̂ = x / max(‖x‖, EPS).
EPS = tl.constexpr(1e-12)


@triton.jit
def _forward(
    x,
    y,
    phi_x,
    phi_y,
    offset,
    result,
    saved,
    partials,
    x_head,
    x_row,
    y_head,
    y_row,
    phi_x_head,
    phi_x_row,
    phi_y_head,
    phi_y_row,
    n,
    d,
    m,
    tau_min,
    tau_span,
    weight,
    beta,
    ADAPTIVE: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    lanes = tl.arange(0, BLOCK)

    xx = tl.zeros((ROWS,), tl.float32)
    yy = tl.zeros((ROWS,), tl.float32)
    xy = tl.zeros((ROWS,), tl.float32)
    for start in range(0, d, BLOCK):
        column = start + lanes
        mask = inside[:, None] & (column < d)[None, :]
        a = tl.load(x + head * x_head + row[:, None] * x_row + column[None, :], mask, other=0.0).to(tl.float32)
        b = tl.load(y + head * y_head + row[:, None] * y_row + column[None, :], mask, other=0.0).to(tl.float32)
        xx += tl.sum(a * a, axis=1)
        yy += tl.sum(b * b, axis=1)
        xy += tl.sum(a * b, axis=1)
    inverse_x = 1.0 / tl.maximum(tl.sqrt(xx), EPS)
    inverse_y = 1.0 / tl.maximum(tl.sqrt(yy), EPS)
    s = xy * inverse_x * inverse_y

    if ADAPTIVE:
        r = tl.zeros((ROWS,), tl.float32)
        for start in range(0, m, BLOCK):
            column = start + lanes
            mask = inside[:, None] & (column < m)[None, :]
            at_x = phi_x + head * phi_x_head + row[:, None] * phi_x_row + column[None, :]
            at_y = phi_y + head * phi_y_head + row[:, None] * phi_y_row + column[None, :]
            a = tl.load(at_x, mask, other=0.0).to(tl.float32)
            b = tl.load(at_y, mask, other=0.0).to(tl.float32)
            r += tl.sum(a * b, axis=1)
        if HAS_OFFSET:
            r -= tl.load(offset).to(tl.float32)
        tau, sigma, complement = temperature(r, tau_min, tau_span)
        inverse = 1.0 / tau
        half_d = 0.5 * d
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

    flat = head * n + row
    count = (heads * n).to(tl.int64)
    tl.store(result + flat, value, inside)
    tl.store(saved + flat, s, inside)
    tl.store(saved + count + flat, inverse_x, inside)
    tl.store(saved + 2 * count + flat, inverse_y, inside)
    tl.store(saved + 3 * count + flat, -weight * inverse, inside)
    tl.store(saved + 4 * count + flat, by_r, inside)

    elements = tl.sum(tl.where(inside, 1.0, 0.0))
    tau_sum = tl.sum(tl.where(inside, tau, 0.0))
    deviation = tl.where(inside, tau - tau_sum / elements, 0.0)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    store_partial(
        partials,
        program,
        heads * tl.num_programs(0),
        True,
        elements,
        tl.sum(tl.where(inside, s, 0.0)),
        tau_sum,
        tl.sum(deviation * deviation),
        tl.min(tl.where(inside, tau, float("inf"))),
        tl.sum(tl.where(inside, bound, 0.0)),
    )


@triton.jit
def _backward(
    gradient,
    saved,
    x,
    y,
    phi_x,
    phi_y,
    grad_x,
    grad_y,
    grad_phi_x,
    grad_phi_y,
    x_head,
    x_row,
    y_head,
    y_row,
    phi_x_head,
    phi_x_row,
    phi_y_head,
    phi_y_row,
    n,
    d,
    m,
    X: tl.constexpr,
    Y: tl.constexpr,
    PHI_X: tl.constexpr,
    PHI_Y: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    lanes = tl.arange(0, BLOCK)
    flat = head * n + row
    count = (tl.num_programs(1) * n).to(tl.int64)
    g = tl.load(gradient + flat, inside, other=0.0)

    if X or Y:
        s = tl.load(saved + flat, inside, other=0.0)
        inverse_x = tl.load(saved + count + flat, inside, other=0.0)
        inverse_y = tl.load(saved + 2 * count + flat, inside, other=0.0)
        by_s = g * tl.load(saved + 3 * count + flat, inside, other=0.0)
        # Below EPS the norm is a constant, so nothing is projected out.
        along_x = tl.where(inverse_x < 1.0 / EPS, s, 0.0) * inverse_x
        along_y = tl.where(inverse_y < 1.0 / EPS, s, 0.0) * inverse_y
        for start in range(0, d, BLOCK):
            column = start + lanes
            mask = inside[:, None] & (column < d)[None, :]
            at_x = x + head * x_head + row[:, None] * x_row + column[None, :]
            at_y = y + head * y_head + row[:, None] * y_row + column[None, :]
            a = tl.load(at_x, mask, other=0.0).to(tl.float32)
            b = tl.load(at_y, mask, other=0.0).to(tl.float32)
            out = flat[:, None] * d + column[None, :]
            if X:
                value = (by_s * inverse_x)[:, None] * (b * inverse_y[:, None] - a * along_x[:, None])
                tl.store(grad_x + out, value.to(grad_x.dtype.element_ty), mask)
            if Y:
                value = (by_s * inverse_y)[:, None] * (a * inverse_x[:, None] - b * along_y[:, None])
                tl.store(grad_y + out, value.to(grad_y.dtype.element_ty), mask)

    if PHI_X or PHI_Y:
        by_r = g * tl.load(saved + 4 * count + flat, inside, other=0.0)
        for start in range(0, m, BLOCK):
            column = start + lanes
            mask = inside[:, None] & (column < m)[None, :]
            out = flat[:, None] * m + column[None, :]
            if PHI_X:
                at_y = phi_y + head * phi_y_head + row[:, None] * phi_y_row + column[None, :]
                value = by_r[:, None] * tl.load(at_y, mask, other=0.0).to(tl.float32)
                tl.store(grad_phi_x + out, value.to(grad_phi_x.dtype.element_ty), mask)
            if PHI_Y:
                at_x = phi_x + head * phi_x_head + row[:, None] * phi_x_row + column[None, :]
                value = by_r[:, None] * tl.load(at_x, mask, other=0.0).to(tl.float32)
                tl.store(grad_phi_y + out, value.to(grad_phi_y.dtype.element_ty), mask)


def _tiling(width: int) -> dict[str, int]:
    """About 2048 elements of each tensor per program: enough loads in flight, few enough registers."""
    block = max(16, min(2048, triton.next_power_of_2(width)))
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
        rows (C, N) float32; saved (5, C, N) for `align_backward`: s, 1/‖x‖, 1/‖y‖, ∂rows/∂s, ∂rows/∂r;
        stats (5,) of `common.summarise`.
    """
    heads, n, d = x.shape
    adaptive = phi_x is not None and phi_y is not None
    x, y = unit_rows(x), unit_rows(y)
    phi_x, phi_y = (unit_rows(phi_x), unit_rows(phi_y)) if phi_x is not None and phi_y is not None else (x, y)
    m = phi_x.shape[2]
    tiling = _tiling(max(d, m))
    grid = (triton.cdiv(n, tiling["ROWS"]), heads)
    rows = torch.empty(heads, n, device=x.device)
    saved = torch.empty(5, heads, n, device=x.device)
    partials = torch.empty(PARTIALS, grid[0] * grid[1], device=x.device)
    _forward[grid](
        x,
        y,
        phi_x,
        phi_y,
        x if offset is None else offset,
        rows,
        saved,
        partials,
        *x.stride()[:2],
        *y.stride()[:2],
        *phi_x.stride()[:2],
        *phi_y.stride()[:2],
        n,
        d,
        m,
        tau_min,
        tau_max - tau_min,
        weight,
        beta,
        ADAPTIVE=adaptive,
        HAS_OFFSET=offset is not None,
        **tiling,
    )
    return rows, saved, summarise(partials)


def align_backward(
    gradient: Tensor,
    saved: Tensor,
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, y, φ(x) and φ(y), each only if `needs` says so.

    Args:
        gradient: (C, N), of the rows.
        saved: of `align_forward`.
        x, y, phi_x, phi_y: as in `align_forward`.
        needs: which of the four gradients are wanted.
    """
    heads, n, d = x.shape
    x, y = unit_rows(x), unit_rows(y)
    inputs = (x, y, x if phi_x is None else unit_rows(phi_x), y if phi_y is None else unit_rows(phi_y))
    grads = tuple(
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if need else None
        for tensor, need in zip(inputs, needs, strict=True)
    )
    m = inputs[2].shape[2]
    tiling = _tiling(max(d, m))
    _backward[(triton.cdiv(n, tiling["ROWS"]), heads)](
        gradient.contiguous(),
        saved,
        *inputs,
        *(x if grad is None else grad for grad in grads),
        *(stride for tensor in inputs for stride in tensor.stride()[:2]),
        n,
        d,
        m,
        *needs,
        **tiling,
    )
    return grads
