"""CLIP's temperature: one number that learns."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..operator_settings import are_numbers, plain
from ..ops import checks
from ..reference import BOUND_SHARE
from ..rows import transformed, widened
from ..setting_types import written
from .bounds import SMALLEST_TAU


class LearnedTemperature(nn.Module):
    """One temperature for all pairs that learns with the encoder: τ = exp(log_tau), from `tau_min` to `tau_max`.

    It is CLIP's (Radford et al., 2021, arXiv 2103.00020, Section 2.5), whose τ begins at 0.07 and stays above 0.01. It
    has no regulariser. A gradient that would carry log τ out of its range is dropped, one that leads back passes.
    Weight decay, which pulls τ to 1, is not for it: `amcl_fast.optim.build_optimizer` gives it none.

    Args:
        init: where τ begins, tau_min ≤ init ≤ tau_max.
        tau_min, tau_max: range of τ, 1e-18 ≤ tau_min < tau_max ≤ 1e18.

    Attributes:
        log_tau: Parameter of one number, log τ; an optimiser's momentum may carry it a little over an end of its range.

    Raises:
        ValueError, TypeError: an argument outside what is accepted.
    """

    def __init__(self, init: float = 0.07, tau_min: float = 0.01, tau_max: float = 10.0) -> None:
        super().__init__()
        are_numbers(init=init, tau_min=tau_min, tau_max=tau_max)
        init, tau_min, tau_max = map(plain, (init, tau_min, tau_max))
        if not SMALLEST_TAU <= tau_min < tau_max <= 1 / SMALLEST_TAU:
            raise ValueError(
                f"tau_min and tau_max must be such that {SMALLEST_TAU} <= tau_min < tau_max <= {1 / SMALLEST_TAU:.0e}, "
                f"got tau_min={written(tau_min)}, tau_max={written(tau_max)}"
            )
        if not tau_min <= init <= tau_max:
            raise ValueError(f"init must be from tau_min={tau_min} to tau_max={tau_max}, got {written(init)}")
        self.tau_min, self.tau_max = float(tau_min), float(tau_max)
        # Of one dimension, since FSDP shards no scalar.
        self.log_tau = nn.Parameter(torch.tensor([math.log(init)]))

    @property
    def tau(self) -> Tensor:
        """τ, 0-dim, float32 or better."""
        log_tau = self.log_tau.reshape(()).to(widened(self.log_tau.dtype))
        low, high = math.log(self.tau_min), math.log(self.tau_max)
        # torch.func and forward mode ask for derivatives of what is written, and know no descent.
        held = log_tau.clamp(low, high) if transformed() else _Held.apply(log_tau, low, high)
        return held.exp()

    @property
    def operator_range(self) -> tuple[float, float]:
        """tau_min and tau_max for an operator, to which this is an adaptive temperature with r = −`score_offset`.

        Wider than its own, so that a τ at an end of that has an offset.
        """
        return self.tau_min / 2, 2 * self.tau_max

    def score_offset(self, dtype: torch.dtype) -> Tensor:
        """o, 0-dim, such that τ = low + (high − low)·σ(o) with `operator_range` (low, high)."""
        low, high = self.operator_range
        tau = self.tau.to(dtype)
        return ((tau - low) / (high - tau)).log()

    @property
    def at_bound(self) -> Tensor:
        """1 if log τ lies within a hundredth of its range from an end of it, else 0; 0-dim, detached."""
        low, high = math.log(self.tau_min), math.log(self.tau_max)
        log_tau, margin = self.log_tau.detach().reshape(()), BOUND_SHARE * (high - low)
        return ((log_tau < low + margin) | (log_tau > high - margin)).float()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """τ (..., A, B) of every pair of rows of x (..., A, d) and y (..., B, d): the same number.

        Raises:
            ValueError, TypeError: x or y are no such tensors.
        """
        checks.table("x", x, None)
        checks.table("y", y, None)
        return self.tau.to(widened(x.dtype)).expand(*x.shape[:-1], y.shape[-2])

    def __float__(self) -> float:
        return float(self.tau.detach())

    def extra_repr(self) -> str:
        return f"tau_min={self.tau_min}, tau_max={self.tau_max}"


class _Held(torch.autograd.Function):
    """A number held within its range. Its gradient ends where descent would lead further out, and only there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        outward = ((x <= ctx.low) & (gradient > 0)) | ((x >= ctx.high) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None
