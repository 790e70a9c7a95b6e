"""One temperature per anchor, of a given perplexity, which cannot collapse."""

import math

import torch
from torch import Tensor, nn

from ..operator_settings import are_numbers, plain
from ..reference import BOUND_SHARE
from ..setting_types import written
from .bounds import LARGEST_FLOAT32, SMALLEST_TAU


class PerplexityTemperature(nn.Module):
    """One temperature per anchor and head at which the softmax of its negatives has a given perplexity.

    τ⁰_i solves H(softmax_T(s_ij/τ⁰_i)) = log(perplexity·|T|) over the negatives T that the loss takes, all of them or
    the κ hardest, and is clamped to [tau_min, tau_max]. Then τ_i = τ⁰_i·mean·avg(1/τ⁰), the average per head over all
    anchors of all processes, so that the mean of 1/τ is 1/mean: a pair's gradient is proportional to 1/τ, and what
    differs from the constant τ = mean is how anchors are told from one another, not the size of the step. τ_i serves an
    anchor's positive and its negatives, as a constant would; it carries no gradient, and there is no φ and no β.

    Nothing learns, so nothing collapses. The calibration is t-SNE's (van der Maaten & Hinton, 2008), and the optimum of
    the distributionally robust form (docs/temperatures.md derives it). For SimCLR and MoCo.

    Args:
        mean: of τ, the harmonic one: 1/mean is the mean of 1/τ. One number for all heads, or a list of one for each.
        perplexity: share of the negatives in T, above 0 and below 1; a product perplexity·|T| below 1 counts as 1.
        tau_min, tau_max: range of τ⁰, 1e-18 ≤ tau_min < tau_max ≤ 3.4e38. τ itself may lie outside.

    Raises:
        ValueError, TypeError: an argument outside what is accepted.
    """

    def __init__(
        self,
        mean: float | list[float] = 0.07,
        perplexity: float = 0.25,
        tau_min: float = 0.01,
        tau_max: float = 1.0,
    ) -> None:
        super().__init__()
        means = mean if isinstance(mean, list | tuple) else [mean]
        for value in means:
            are_numbers(mean=value)
        are_numbers(perplexity=perplexity, tau_min=tau_min, tau_max=tau_max)
        means = [plain(value) for value in means]
        perplexity, tau_min, tau_max = map(plain, (perplexity, tau_min, tau_max))
        if not SMALLEST_TAU <= tau_min < tau_max <= LARGEST_FLOAT32:
            raise ValueError(
                f"tau_min and tau_max must be such that {SMALLEST_TAU} <= tau_min < tau_max <= {LARGEST_FLOAT32:.3g}, "
                f"got tau_min={written(tau_min)}, tau_max={written(tau_max)}"
            )
        if not means or not all(SMALLEST_TAU <= value <= LARGEST_FLOAT32 for value in means):
            raise ValueError(
                f"mean must be one number, or one for each head, from {SMALLEST_TAU} to {LARGEST_FLOAT32:.3g}, "
                f"got {written(mean)}"
            )
        if not 0 < perplexity < 1:
            raise ValueError(
                f"perplexity must be above 0 and below 1, a share of the negatives, got {written(perplexity)}"
            )
        self.mean = [float(value) for value in means] if isinstance(mean, list | tuple) else float(mean)
        self.perplexity = float(perplexity)
        self.tau_min, self.tau_max = float(tau_min), float(tau_max)

    def check_heads(self, heads: int) -> None:
        """That there is one mean, or as many as heads.

        Raises:
            ValueError: there are others.
        """
        if isinstance(self.mean, list) and len(self.mean) != heads:
            raise ValueError(
                f"temperature.mean must be one number, or one for each of the {heads} heads, got {self.mean}"
            )

    def pinned(self, tau: Tensor, inverse: Tensor) -> Tensor:
        """τ (C, ...) of τ⁰ (C, ...) whose 1/τ⁰ are `inverse` (C,) on average."""
        if isinstance(self.mean, list):  # by head: a tensor of them would be a copy from the host
            factor = torch.stack([of * mean for of, mean in zip(inverse, self.mean, strict=True)])
        else:
            factor = inverse * self.mean
        return tau * factor.view(-1, *(1,) * (tau.dim() - 1))

    def share_at_bound(self, tau: Tensor) -> Tensor:
        """The share of τ⁰ whose logarithm lies within a hundredth of its range from an end of it; 0-dim."""
        low, high = math.log(self.tau_min), math.log(self.tau_max)
        margin = BOUND_SHARE * (high - low)
        return ((tau < math.exp(low + margin)) | (tau > math.exp(high - margin))).to(tau.dtype).mean()

    def extra_repr(self) -> str:
        return f"mean={self.mean}, perplexity={self.perplexity}, tau_min={self.tau_min}, tau_max={self.tau_max}"
