"""AMCL's temperature of a pair or of an anchor: one small MLP φ shared by all heads (paper, Section 3.2)."""

import math
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ..operator_settings import are_numbers, plain
from ..ops import checks
from ..rows import savable, unit
from ..setting_types import WIDEST, fits_memory, one_of, whole, written
from .bounds import LARGEST_FLOAT32, SMALLEST_TAU

Score = Literal["dot", "cosine"]
Precision = Literal["auto", "float32", "tf32"]
Share = Literal["pair", "row"]
Objective = Literal["likelihood", "dro"]
SCORES: tuple[str, ...] = get_args(Score)
PRECISIONS: tuple[str, ...] = get_args(Precision)
SHARES: tuple[str, ...] = get_args(Share)
OBJECTIVES: tuple[str, ...] = get_args(Objective)


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
        scale: factor of the bounded score, 1e-18 ≤ scale ≤ 3.4e38; unused with `dot`.
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
        share: `pair`, the paper's τ_ij, or `row`: one τ_i for an anchor's positive and all its negatives, by which the
            likelihood of its negatives says nothing about which of them is which. φ has one output then, and r_i =
            φ(x_i), `dot`. For SimCLR and MoCo.
        objective: what `row` learns by: `likelihood`, the loss itself, which sends the τ of anchors that are told apart
            to tau_min, or `dro`, the distributionally robust form τ·(log Σ_T exp((s_n − s_p)/τ) − log |T|) + rho·τ
            (SogCLR's successors iSogCLR, arXiv 2305.11965, and TempNet, 2404.04575). It is convex in τ and least where
            the softmax of an anchor's negatives has the perplexity |T|·exp(−rho).
        rho: ρ > 0 of `dro`; None with `likelihood`.
        init: where τ begins: with `cosine` the τ of parallel rows, in place of `offset`; with `row` the τ of all. None:
            where `offset`, or chance, puts it. Not with `dot` over pairs.

    Attributes:
        phi: nn.Sequential(Linear, ReLU, Linear), φ.
        offset: learned offset of the cosine (Parameter of one number; 0-dim ones of old checkpoints load), None with
            `dot`.

    Raises:
        ValueError, TypeError: an argument outside what is accepted.
    """

    # Of modules that were pickled before there were these.
    precision: Precision = "auto"
    share: Share = "pair"
    objective: Objective = "likelihood"
    rho: float | None = None

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
        share: Share = "pair",
        objective: Objective = "likelihood",
        rho: float | None = None,
        init: float | None = None,
    ) -> None:
        super().__init__()
        dim, hidden_dim = whole("dim", dim, 1, WIDEST), whole("hidden_dim", hidden_dim, 1, WIDEST)
        are_numbers(tau_min=tau_min, tau_max=tau_max, scale=scale, offset=offset)
        tau_min, tau_max, scale, offset = map(plain, (tau_min, tau_max, scale, offset))
        if not SMALLEST_TAU <= tau_min < tau_max <= LARGEST_FLOAT32:
            raise ValueError(
                f"tau_min and tau_max must be such that {SMALLEST_TAU} <= tau_min < tau_max <= {LARGEST_FLOAT32:.3g}, "
                f"got tau_min={written(tau_min)}, tau_max={written(tau_max)}"
            )
        one_of("score", score, SCORES)
        if not SMALLEST_TAU <= scale <= LARGEST_FLOAT32:
            raise ValueError(f"scale must be from {SMALLEST_TAU} to {LARGEST_FLOAT32:.3g}, got {written(scale)}")
        if not -LARGEST_FLOAT32 <= offset <= LARGEST_FLOAT32:
            raise ValueError(f"offset must be finite in float32, got {written(offset)}")
        one_of("precision", precision, PRECISIONS)
        _check_sharing(share, objective, rho, score, precision)
        _check_init(init, tau_min, tau_max, share, score, offset)
        self.dim, self.hidden_dim = dim, hidden_dim
        self.tau_min, self.tau_max = float(tau_min), float(tau_max)
        self.score, self.scale = score, float(scale)
        self.precision = precision
        self.share, self.objective, self.rho = share, objective, rho
        # In this order: a seed has the weights that it always had.
        with fits_memory(dim=dim, hidden_dim=hidden_dim):
            first, last = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim if share == "pair" else 1)
        self.phi = nn.Sequential(first, nn.ReLU(), last)
        if init is not None:
            # σ(start) is where init lies in the range.
            start = math.log((init - tau_min) / (tau_max - init))
            if share == "row":
                nn.init.zeros_(last.weight)
                nn.init.constant_(last.bias, -start)
            else:
                offset = 1 + start / scale
        # Of one dimension, since FSDP shards no scalar.
        self.offset = nn.Parameter(torch.tensor([float(offset)])) if score == "cosine" else None

    def features(self, x: Tensor) -> Tensor:
        """φ of rows x (..., dim), scaled such that r_ij = features(x_i)·features(y_j) − score_offset.

        Computed in the dtype of `x`, whatever φ's own: 1/τ amplifies every rounding.
        """
        (x,) = savable(x)
        if self.phi[0].weight.dtype == x.dtype:
            hidden = self.phi(x)
        else:
            weights = {name: weight.to(x.dtype) for name, weight in self.phi.named_parameters()}
            hidden = torch.func.functional_call(self.phi, weights, (x,))
        if self.score == "dot":
            return hidden
        return math.sqrt(self.scale) * unit(hidden)

    def of_rows(self, x: Tensor) -> Tensor:
        """τ (..., A) of anchors x (..., A, dim), with `share="row"`; in the dtype of `x`."""
        assert self.share == "row"
        return self.tau_min + (self.tau_max - self.tau_min) * torch.sigmoid(-self.features(x).squeeze(-1))

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

        Raises:
            ValueError, TypeError: x or y are no such tensors.
        """
        checks.table("x", x, self.dim)
        checks.table("y", y, self.dim)
        if self.share == "row":
            return self.of_rows(x).unsqueeze(-1).expand(*x.shape[:-1], y.shape[-2])
        r = self.features(x) @ self.features(y).mT
        if (offset := self.score_offset) is not None:
            r = r - offset
        return self.tau_min + (self.tau_max - self.tau_min) * torch.sigmoid(-r)

    def extra_repr(self) -> str:
        scale = f", scale={self.scale}" if self.score == "cosine" else ""
        precision = "" if self.precision == "auto" else f", precision={self.precision!r}"
        share = "" if self.share == "pair" else f", share={self.share!r}, objective={self.objective!r}"
        rho = "" if self.rho is None else f", rho={self.rho}"
        return f"tau_min={self.tau_min}, tau_max={self.tau_max}, score={self.score!r}{scale}{precision}{share}{rho}"


def _check_sharing(share: str, objective: str, rho: float | None, score: str, precision: str) -> None:
    one_of("share", share, SHARES)
    one_of("objective", objective, OBJECTIVES)
    if share == "row" and score != "dot":
        raise ValueError(f"score must be 'dot' with share='row', whose score is φ's only output, got {score!r}")
    if share == "row" and precision != "auto":
        raise ValueError(
            f"precision must be 'auto' with share='row', whose φ multiplies as torch is set, got {precision!r}"
        )
    if objective == "dro" and share != "row":
        raise ValueError(f"share must be 'row' with objective='dro', got {share!r}")
    if objective != "dro" and rho is not None:
        raise ValueError(f"rho must be None with objective={objective!r}, got {written(rho)}")
    if objective == "dro":
        are_numbers(rho=rho)
        if not 0 < rho <= LARGEST_FLOAT32:  # type: ignore[operator]
            raise ValueError(f"rho must be positive and at most {LARGEST_FLOAT32:.3g}, got {written(rho)}")


def _check_init(init: float | None, tau_min: float, tau_max: float, share: str, score: str, offset: float) -> None:
    if init is None:
        return
    are_numbers(init=init)
    if not tau_min < init < tau_max:
        raise ValueError(f"init must be above tau_min={tau_min} and below tau_max={tau_max}, got {written(init)}")
    if share == "pair" and score == "dot":
        raise ValueError(f"init must be None with score='dot' over pairs, whose score has no offset, got {init}")
    if offset != 0:
        raise ValueError(f"offset must be left out where init says where τ begins, got {offset}")


def cosine_temperature(
    dim: int, tau_min: float, tau_max: float, *, per_width: bool = False, offset: float = 0.0
) -> AdaptiveTemperature:
    """τ from `tau_min` to `tau_max`, with `per_width` both divided by `dim`; the score does not see φ's lengths."""
    width = whole("dim", dim, 1, WIDEST) if per_width else 1
    return AdaptiveTemperature(dim, tau_min=tau_min / width, tau_max=tau_max / width, score="cosine", offset=offset)
