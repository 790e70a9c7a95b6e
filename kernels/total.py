"""The sum over the anchors of a contrast: Σ (positive + negative), the positive joined to the negatives or not.

−log(e^p / (e^p + e^n)) of a positive's logit p = −positive and a row n of the negatives is log(1 + e^(n − p)), which is
right also where p and n are large and near to each other. One block reads the rows in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import blocks, launched


@launched("n", "count")
@triton.jit
def _total_forward(positive, negative, result, weight, n, count, JOINED: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        at = start + lanes
        mask = at < count
        # Row (head, a) of 2n anchors has the positive (head, a mod n) of n pairs.
        p = tl.load(positive + at // (2 * n) * n + at % n, mask, other=0.0)
        value = p + tl.load(negative + at, mask, other=0.0)
        if JOINED:
            e = tl.exp(-tl.abs(value))
            grown = 1.0 + e
            # log(1 + e), to full relative precision.
            value = tl.maximum(value, 0.0) + tl.where(grown == 1.0, e, tl.log(grown) * (e / (grown - 1.0)))
        total += tl.where(mask, value, 0.0)
    tl.store(result, tl.sum(total) * weight)


@launched("n", "count")
@triton.jit
def _total_backward(
    gradient, positive, negative, grad_positive, grad_negative, weight, n, count,
    JOINED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    first = at // n * (2 * n) + at % n
    slope = tl.load(gradient) * weight
    by_first = tl.zeros((BLOCK,), tl.float32) + slope
    by_second = by_first
    if JOINED:
        p = tl.load(positive + at, mask, other=0.0)
        by_first = slope * _sigmoid(p + tl.load(negative + first, mask, other=0.0))
        by_second = slope * _sigmoid(p + tl.load(negative + first + n, mask, other=0.0))
    tl.store(grad_negative + first, by_first, mask)
    tl.store(grad_negative + first + n, by_second, mask)
    tl.store(grad_positive + at, by_first + by_second, mask)


@triton.jit
def _sigmoid(x):
    """1 / (1 + e^−x), to full relative precision."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


def total_forward(positive: Tensor, negative: Tensor, joined: bool, weight: float) -> Tensor:
    """weight · Σ over heads and anchors, 0-dim float32.

    Args:
        positive: (C, N) float32 contiguous, of each pair: minus the positive's logit.
        negative: (C, 2N) float32 contiguous, of each anchor.
        joined: the positive is one more logit of its anchors' log-sum-exp.
        weight: factor of the sum.
    """
    result = positive.new_empty(())
    _total_forward[(1,)](
        positive, negative, result, weight, positive.shape[1], negative.numel(), JOINED=joined, BLOCK=2048, num_warps=8
    )
    return result


def total_backward(
    gradient: Tensor, positive: Tensor, negative: Tensor, joined: bool, weight: float
) -> tuple[Tensor, Tensor]:
    """Gradients of both arguments of `total_forward`; `gradient` is 0-dim."""
    grads = torch.empty_like(positive), torch.empty_like(negative)
    count = positive.numel()
    _total_backward[(blocks(count, 512),)](
        gradient, positive, negative, *grads, weight, positive.shape[1], count, JOINED=joined, BLOCK=512, num_warps=4
    )
    return grads
