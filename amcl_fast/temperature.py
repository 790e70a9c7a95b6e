"""Temperatures that learn: AMCL's, one small MLP φ shared by all heads (paper, Section 3.2), and CLIP's, one number."""

import math
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .operator_settings import are_numbers
from .reference import BOUND_SHARE
from .rows import transformed, unit, widened

Score = Literal["dot", "cosine"]
Precision = Literal["auto", "float32", "tf32"]
SCORES: tuple[str, ...] = get_args(Score)
PRECISIONS: tuple[str, ...] = get_args(Precision)

# Of any τ: it must be a number of float32, in which most losses are evaluated, and so must 1/τ², a slope of theirs.
SMALLEST_TAU, LARGEST_FLOAT32 = 1e-18, torch.finfo(torch.float32).max


class AdaptiveTemperature(nn.Module):
    """τ_ij = tau_min + (tau_max − tau_min)·σ(−r_ij), with r_ij the score of two rows under φ.

    φ is Linear(dim → hidden_dim), ReLU, Linear(hidden_dim → dim). The score is one of

    - `dot`: r = φ(x)·φ(y), the paper's and the released code's. It is unbounded, and with the released range
      training drives every τ to tau_min within a few steps.
    - `cosine`: r = scale·(cos(φ(x), φ(y)) − offset) with a learned offset. It does not see how long vectors are and
      differs by at most 2·scale between pairs, which keeps temperatures inside their range. The offset itself is not
      bounded: a loss that falls for ever with τ still carries all of them to a bound.

    Args:
        dim: width of what φ reads: the projection width d, and for Barlow Twins, where φ reads channel
            vectors, the global batch size.
        hidden_dim: hidden width h.
        tau_min, tau_max: range of τ, 1e-18 ≤ tau_min < tau_max ≤ 3.4e38.
        score: one of `SCORES`.
        scale: factor of the bounded score; unused with `dot`.
        offset: where the learned offset begins; unused with `dot`. φ of an untrained encoder's rows are nearly
            parallel: 0 starts most pairs close to tau_min, where σ is flat and the first steps may throw all of them
            to the other end; ½ starts them at an eighth of the range, 1 in its middle.
        precision: of φ's products in the losses, forwards and backwards, on the backend triton, where tensor cores
            multiply in tf32 at several times the rate of float32: `tf32`, `float32`, or `auto`, which is tf32 where
            autocast or the inputs ask for products in half precision (but not for SimSiam, whose scores are not
            rounded), and else what torch is set to. A φ with other layers, hooks or a `features` of its own, other
            backends, and with them the CPU, multiply as torch is set. What it does to τ, against float64 (d = 128,
            1024 rows, τ from 0.1 to 1, emulated): with `cosine` 2e-5 of τ for a φ that has learned nothing and 2e-4
            for one that has (rms; 1e-3 at most), where rounding φ's output to bfloat16, as those products do, changes
            it by 6e-4 and 4e-4 (3e-3 at most); with `dot` 1e-5 beside 7e-5. Twice that from 1e-5 to 2.

    Attributes:
        phi: nn.Sequential(Linear, ReLU, Linear), φ.
        offset: learned offset of the cosine (Parameter of one number; 0-dim ones of old checkpoints load), None with
            `dot`.

    Raises:
        ValueError, TypeError: an argument outside what is accepted.
    """

    precision: Precision = "auto"  # of modules that were pickled before there was one

    def __init__(
        self,
        dim: int,
        hidden_dim: int = 128,
        tau_min: float = 1e-5,
        tau_max: float = 2.0,
        score: Score = "dot",
        *,
        scale: float = 4.0,
        offset: float = 0.0,
        precision: Precision = "auto",
    ) -> None:
        super().__init__()
        for name, width in (("dim", dim), ("hidden_dim", hidden_dim)):
            if not isinstance(width, int) or isinstance(width, bool):
                raise TypeError(f"{name} must be an int, got {type(width).__name__}")
            if width < 1:
                raise ValueError(f"{name} must be at least 1, got {width}")
        are_numbers(tau_min=tau_min, tau_max=tau_max, scale=scale, offset=offset)
        if not SMALLEST_TAU <= tau_min < tau_max <= LARGEST_FLOAT32:
            raise ValueError(
                f"tau_min and tau_max must be such that {SMALLEST_TAU} <= tau_min < tau_max <= {LARGEST_FLOAT32:.3g}, "
                f"got tau_min={tau_min}, tau_max={tau_max}"
            )
        if score not in SCORES:
            raise ValueError(f"score must be one of {SCORES}, got {score!r}")
        if not 0 < scale <= LARGEST_FLOAT32:
            raise ValueError(f"scale must be positive and at most {LARGEST_FLOAT32:.3g}, got {scale}")
        if not math.isfinite(offset):
            raise ValueError(f"offset must be finite, got {offset}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
        self.dim, self.hidden_dim = dim, hidden_dim
        self.tau_min, self.tau_max = float(tau_min), float(tau_max)
        self.score, self.scale = score, float(scale)
        self.precision = precision
        self.phi = nn.Sequential(nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
        # Of one dimension, since FSDP shards no scalar.
        self.offset = nn.Parameter(torch.tensor([float(offset)])) if score == "cosine" else None

    def features(self, x: Tensor) -> Tensor:
        """φ of rows x (..., dim), scaled such that r_ij = features(x_i)·features(y_j) − score_offset.

        Computed in the dtype of `x`, whatever φ's own: 1/τ amplifies every rounding.
        """
        if self.phi[0].weight.dtype == x.dtype:
            hidden = self.phi(x)
        else:
            weights = {name: weight.to(x.dtype) for name, weight in self.phi.named_parameters()}
            hidden = torch.func.functional_call(self.phi, weights, (x,))
        if self.score == "dot":
            return hidden
        return math.sqrt(self.scale) * unit(hidden)

    @property
    def is_plain(self) -> bool:
        """Whether `features` is what is written here of the layers made here, with nobody looking on.

        Only then may its layers be read one by one: a subclass, other layers and hooks mean what they say.
        """
        layers = [self.phi, *self.phi]
        return (
            type(self).features is AdaptiveTemperature.features
            and "features" not in vars(self)
            and [type(layer) for layer in layers] == [nn.Sequential, nn.Linear, nn.ReLU, nn.Linear]
            and all(layer.bias is not None for layer in layers if isinstance(layer, nn.Linear))
            and not any(
                layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
                for layer in layers
            )
        )

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of both layers of φ, in `dtype`."""
        first, second = cast(nn.Linear, self.phi[0]), cast(nn.Linear, self.phi[2])
        return first.weight.to(dtype), first.bias.to(dtype), second.weight.to(dtype), second.bias.to(dtype)

    def products(self, of_contrast: torch.dtype) -> str:
        """How φ's products are made on CUDA beside others that read `of_contrast`; "" is what torch is set to."""
        if self.precision == "auto":
            return "tf32" if of_contrast in (torch.bfloat16, torch.float16) else ""
        return {"float32": "ieee", "tf32": "tf32"}[self.precision]

    @property
    def score_offset(self) -> Tensor | None:
        """What is subtracted from every product of `features`: 0-dim tensor, or None for `dot`."""
        return None if self.offset is None else self.scale * self.offset.reshape(())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}offset"
        if self.offset is not None and key in state_dict:
            state_dict[key] = state_dict[key].reshape(self.offset.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """τ (..., A, B) of every pair of rows of x (..., A, dim) and y (..., B, dim).

        Rows are what φ reads: L2-normalised projections; for Barlow Twins, raw channel vectors.
        """
        r = self.features(x) @ self.features(y).mT
        if (offset := self.score_offset) is not None:
            r = r - offset
        return self.tau_min + (self.tau_max - self.tau_min) * torch.sigmoid(-r)

    def extra_repr(self) -> str:
        scale = f", scale={self.scale}" if self.score == "cosine" else ""
        precision = "" if self.precision == "auto" else f", precision={self.precision!r}"
        return f"tau_min={self.tau_min}, tau_max={self.tau_max}, score={self.score!r}{scale}{precision}"


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
        if not SMALLEST_TAU <= tau_min < tau_max <= 1 / SMALLEST_TAU:
            raise ValueError(
                f"tau_min and tau_max must be such that {SMALLEST_TAU} <= tau_min < tau_max <= {1 / SMALLEST_TAU:.0e}, "
                f"got tau_min={tau_min}, tau_max={tau_max}"
            )
        if not tau_min <= init <= tau_max:
            raise ValueError(f"init must be from tau_min={tau_min} to tau_max={tau_max}, got {init}")
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
        """τ (..., A, B) of every pair of rows of x (..., A, d) and y (..., B, d): the same number."""
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


def cosine_temperature(
    dim: int, tau_min: float, tau_max: float, *, per_width: bool = False, offset: float = 0.0
) -> AdaptiveTemperature:
    """τ from `tau_min` to `tau_max`, with `per_width` both divided by `dim`; the score does not see φ's lengths."""
    # A width that is none is AdaptiveTemperature's to name.
    width = dim if per_width and isinstance(dim, int) and dim > 0 else 1
    return AdaptiveTemperature(dim, tau_min=tau_min / width, tau_max=tau_max / width, score="cosine", offset=offset)
