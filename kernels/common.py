"""What the kernels share: τ and its slope, the regulariser, summaries of s and τ, precision of the products."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of a table of partial summaries: elements, Σs, Στ, Σ(τ − partial mean)², min τ, elements at a bound.
PARTIALS = 6

# τ counts as at a bound when σ(−r) is within this share of 0 or 1.
BOUND_SHARE = tl.constexpr(0.01)


@triton.jit
def temperature(r, tau_min, tau_span):
    """τ = tau_min + tau_span·σ(−r), with σ(−r) and 1 − σ(−r), each to full relative precision."""
    e = tl.exp(-tl.abs(r))
    near = 1.0 / (1.0 + e)
    far = e * near
    sigma = tl.where(r > 0, far, near)
    return tau_min + tau_span * sigma, sigma, tl.where(r > 0, near, far)


@triton.jit
def temperature_slope(sigma, complement, tau_span):
    """dτ/dr."""
    return -tau_span * sigma * complement


@triton.jit
def omega(tau, inverse, log_weight):
    """Ω(τ) = log_weight·log τ + 1/τ; log_weight is d/2 in the paper, 1 in the released top-κ mean."""
    return log_weight * tl.log(tau) + inverse


@triton.jit
def omega_slope(inverse, log_weight):
    """dΩ/dτ."""
    return (log_weight - inverse) * inverse


@triton.jit
def at_bound(sigma, complement):
    """1.0 where τ is within `BOUND_SHARE` of an end of its range, else 0.0."""
    return tl.where((sigma < BOUND_SHARE) | (complement < BOUND_SHARE), 1.0, 0.0)


@triton.jit
def pair_terms(s, r, tau_min, tau_span, beta, log_weight, share, ADAPTIVE: tl.constexpr):
    """A negative pair: its value share·s/τ − β·Ω(τ), the value's slopes by s and r, τ, and `at_bound`.

    Constant temperature: τ = tau_min, no regulariser, and `r` is not looked at.
    """
    if ADAPTIVE:
        tau, sigma, complement = temperature(r, tau_min, tau_span)
        inverse = 1.0 / tau
        by_s = share * inverse
        value = s * by_s - beta * omega(tau, inverse, log_weight)
        by_tau = -s * by_s * inverse - beta * omega_slope(inverse, log_weight)
        by_r = by_tau * temperature_slope(sigma, complement, tau_span)
        bound = at_bound(sigma, complement)
    else:
        tau = tl.zeros(s.shape, tl.float32) + tau_min
        by_s = tl.zeros(s.shape, tl.float32) + share / tau_min
        value = s * by_s
        by_r = tl.zeros(s.shape, tl.float32)
        bound = by_r
    return value, by_s, by_r, tau, bound


@triton.jit
def store_partial(partials, index, count, mask, elements, s_sum, tau_sum, tau_m2, tau_low, bound):
    """Write one summary, or a vector of them, as column `index` of the (PARTIALS, count) table."""
    tl.store(partials + index, elements, mask)
    tl.store(partials + count + index, s_sum, mask)
    tl.store(partials + 2 * count + index, tau_sum, mask)
    tl.store(partials + 3 * count + index, tau_m2, mask)
    tl.store(partials + 4 * count + index, tau_low, mask)
    tl.store(partials + 5 * count + index, bound, mask)


@triton.jit
def store_block_partial(partials, index, count, shown, s, tau, bound, centre):
    """Summarise the elements of a block where `shown` as column `index` of the (PARTIALS, count) table.

    `centre` is some τ of the block: the squares are taken around it, in one pass and without large sums.
    """
    elements = tl.sum(tl.where(shown, 1.0, 0.0))
    deviation = tl.where(shown, tau - centre, 0.0)
    shift = tl.sum(deviation)
    m2 = tl.sum(deviation * deviation) - shift * shift / tl.maximum(elements, 1.0)
    store_partial(
        partials,
        index,
        count,
        True,
        elements,
        tl.sum(tl.where(shown, s, 0.0)),
        centre * elements + shift,
        tl.maximum(m2, 0.0),
        tl.min(tl.where(shown, tau, float("inf"))),
        tl.sum(tl.where(shown, bound, 0.0)),
    )


@triton.jit
def _summarise(partials, stats, count, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    elements = tl.zeros((BLOCK,), tl.float32)
    s_sum = tl.zeros((BLOCK,), tl.float32)
    tau_sum = tl.zeros((BLOCK,), tl.float32)
    bound = tl.zeros((BLOCK,), tl.float32)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    for start in range(0, count, BLOCK):
        at = partials + start + lanes
        mask = start + lanes < count
        elements += tl.load(at, mask, other=0.0)
        s_sum += tl.load(at + count, mask, other=0.0)
        tau_sum += tl.load(at + 2 * count, mask, other=0.0)
        low = tl.minimum(low, tl.load(at + 4 * count, mask, other=float("inf")))
        bound += tl.load(at + 5 * count, mask, other=0.0)
    total = tl.sum(elements)
    mean = tl.sum(tau_sum) / total
    m2 = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        at = partials + start + lanes
        mask = start + lanes < count
        size = tl.load(at, mask, other=0.0)
        part = tl.load(at + 2 * count, mask, other=0.0) / tl.maximum(size, 1.0)
        m2 += tl.load(at + 3 * count, mask, other=0.0) + size * (part - mean) * (part - mean)
    tl.store(stats, tl.sum(s_sum) / total)
    tl.store(stats + 1, mean)
    tl.store(stats + 2, tl.sqrt(tl.sum(m2) / total))
    # An empty set has no minimum: NaN, as its mean.
    tl.store(stats + 3, tl.where(total > 0, tl.min(low), mean))
    tl.store(stats + 4, tl.sum(bound) / total)


def summarise(partials: Tensor) -> Tensor:
    """Merge partial summaries (PARTIALS, P) in a fixed order.

    Returns (5,): mean of s; mean, standard deviation and minimum of τ; share of τ at a bound.
    """
    stats = partials.new_empty(5)
    # One block, so that the order is fixed: wide, since every turn of its loop waits for memory.
    _summarise[(1,)](partials, stats, partials.shape[1], BLOCK=2048, num_warps=16)
    return stats


def unit_rows(x: Tensor) -> Tensor:
    """`x`, copied if its last dimension is not contiguous: gathers and row-wise kernels read whole rows."""
    return x if x.stride(-1) == 1 else x.contiguous()


def capability(x: Tensor) -> tuple[int, int]:
    """Compute capability of the GPU that holds `x`; (0, 0) for CPU tensors, which only the interpreter takes."""
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)


def dot_precision(x: Tensor) -> str:
    """How tl.dot multiplies tiles of `x`: `ieee` for half precision, which it leaves as it is.

    float32 is split in three tf32 products, as exact as float32 itself: 1/τ amplifies every rounding. It
    becomes plain tf32 only if the user asked torch for that.
    """
    if x.dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
