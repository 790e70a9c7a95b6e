"""What the kernels share: τ and its slope, the regulariser, summaries of s and τ, precision of the products."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launched

# Rows of a table of partial summaries: elements, Σs, Στ, Σ(τ − partial mean)², min τ, elements at a bound.
PARTIALS = 6

# τ counts as at a bound when σ(−r) is within this share of 0 or 1.
BOUND_SHARE = tl.constexpr(0.01)
# As torch.nn.functional.normalize: x̂ = x / max(‖x‖, EPS).
EPS = tl.constexpr(1e-12)
# Longer rows are scaled down before they are squared.
LONGEST = tl.constexpr(2.0**40)

# Launch options of kernels that must form the same bits from the same source: products and sums are fused only where
# tl.fma says so, not wherever the compiler likes.
FAITHFUL = {"enable_fp_fusion": False}

# The interpreter has no machine instructions: it computes what they approximate.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def reciprocal(x):
    """1/x to one unit in the last place, by one instruction where a division takes eight."""
    if _INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def log2(x, FAST: tl.constexpr):
    """log₂ x; FAST: within 2⁻²² by one instruction where all of float32 takes 27."""
    if FAST and not _INTERPRETED:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.log2(x)


@triton.jit
def _logistic(r):
    """σ(−r), and the larger and the smaller of σ(−r) and σ(r), each to full relative precision."""
    e = tl.exp2(-tl.abs(r) * LOG2E)
    near = reciprocal(1.0 + e)
    far = e * near
    return tl.where(r > 0, far, near), near, far


@triton.jit
def temperature(r, tau_min, tau_span):
    """τ = tau_min + tau_span·σ(−r), with σ(−r) and 1 − σ(−r), each to full relative precision."""
    sigma, near, far = _logistic(r)
    return tl.fma(sigma, tau_span, tau_min), sigma, tl.where(r > 0, near, far)


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
def near_bound(tau, tau_min, tau_span):
    """`at_bound`, of a τ that is no sigmoid's."""
    margin = BOUND_SHARE * tau_span
    return tl.where((tau < tau_min + margin) | (tau > tau_min + tau_span - margin), 1.0, 0.0)


@triton.jit
def pair_terms(
    s, r, tau_min, tau_span, beta, log_weight, share, ADAPTIVE: tl.constexpr, FAST: tl.constexpr = False
):  # fmt: skip
    """A negative pair: its value share·s/τ − β·Ω(τ) divided by ln 2, the undivided value's slopes by s and r, τ, and
    1.0 where it is within `BOUND_SHARE` of an end of its range.

    Constant temperature: τ = tau_min, a number or one of each row (R, 1) or column (1, N); no regulariser, and `r` is
    not looked at. FAST: `log2`'s.
    """
    if ADAPTIVE:
        sigma, near, far = _logistic(r)
        tau = tl.fma(sigma, tau_span, tau_min)
        inverse = reciprocal(tau)
        by_s = share * inverse
        scaled = tl.fma(s, share, -beta) * inverse
        value = tl.fma(scaled, LOG2E, log2(tau, FAST) * (-beta * log_weight))
        # dτ/dr/τ, at most 1 in size, before it meets a value that 1/τ has made large.
        by_r = (inverse * (near * far * tau_span)) * (scaled + beta * log_weight)
        bound = tl.where(far < BOUND_SHARE, 1.0, 0.0)
    else:
        tau = tl.zeros(s.shape, tl.float32) + tau_min
        by_s = tl.zeros(s.shape, tl.float32) + share / tau_min
        value = s * (share / tau_min * LOG2E)
        by_r = tl.zeros(s.shape, tl.float32)
        bound = by_r
    return value, by_s, by_r, tau, bound


@triton.jit
def joined(top, total, logit):
    """A log-sum-exp with one more `logit`: new top and total, as `pair_terms` has them, and the logit's weight."""
    logit = logit * LOG2E
    higher = tl.maximum(top, logit)
    exponential = tl.exp2(logit - higher)
    total = total * tl.exp2(top - higher) + exponential
    return higher, total, exponential / total


@triton.jit
def store_partial(partials, index, count, mask, elements, s_sum, tau_sum, tau_m2, tau_lowest, bound):
    """Write one summary, or a vector of them, as column `index` of the (PARTIALS, count) table."""
    tl.store(partials + index, elements, mask)
    tl.store(partials + count + index, s_sum, mask)
    tl.store(partials + 2 * count + index, tau_sum, mask)
    tl.store(partials + 3 * count + index, tau_m2, mask)
    tl.store(partials + 4 * count + index, tau_lowest, mask)
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
def summary(partials, stats, count, BLOCK: tl.constexpr):
    """The work of `summarise`, by one program: so the order is fixed."""
    lanes = tl.arange(0, BLOCK)
    elements = tl.zeros((BLOCK,), tl.float32)
    s_sum = tl.zeros((BLOCK,), tl.float32)
    tau_sum = tl.zeros((BLOCK,), tl.float32)
    bound = tl.zeros((BLOCK,), tl.float32)
    lowest = tl.full((BLOCK,), float("inf"), tl.float32)
    for start in range(0, count, BLOCK):
        at = partials + start + lanes
        mask = start + lanes < count
        elements += tl.load(at, mask, other=0.0)
        s_sum += tl.load(at + count, mask, other=0.0)
        tau_sum += tl.load(at + 2 * count, mask, other=0.0)
        lowest = tl.minimum(lowest, tl.load(at + 4 * count, mask, other=float("inf")))
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
    tl.store(stats + 3, tl.where(total > 0, tl.min(lowest), mean))
    tl.store(stats + 4, tl.sum(bound) / total)


@launched("count")
@triton.jit
def _summarise_stats(partials, stats, count, BLOCK: tl.constexpr):
    summary(partials, stats, count, BLOCK)


def summarise(partials: Tensor) -> Tensor:
    """Merge partial summaries (PARTIALS, P) in a fixed order.

    Returns (5,): mean of s; mean, standard deviation and minimum of τ; share of τ at a bound.
    """
    stats = partials.new_empty(5)
    # One block, so that the order is fixed: wide, since every turn of its loop waits for memory.
    _summarise_stats[(1,)](partials, stats, partials.shape[1], BLOCK=2048, num_warps=16)
    return stats


@triton.jit
def negated_sum(scores, result, count, BLOCK: tl.constexpr):
    """−Σ scores, by one program: the gradient of the offset in r = φ·φ − offset."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(scores + at, at < count, other=0.0)
    tl.store(result, (-tl.sum(total)).to(result.dtype.element_ty))


@launched("count")
@triton.jit
def _offset_gradient(scores, result, count, BLOCK: tl.constexpr):
    negated_sum(scores, result, count, BLOCK)


def offset_gradient(scores: Tensor, offset: Tensor) -> Tensor:
    """−Σ scores, contiguous float32, like `offset`."""
    result = torch.empty_like(offset)
    _offset_gradient[(1,)](scores, result, scores.numel(), BLOCK=2048, num_warps=8)
    return result


def contiguous_rows(x: Tensor) -> Tensor:
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
