"""What the losses of all frameworks share: a temperature, a backend, the shape and statistics of the latest call."""

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.backends import BackendName
from ..ops.phi import phi
from ..reference import Stats
from ..rows import Prepared, at_least_float32, widened
from ..setting_types import one_of
from ..temperature import SMALLEST_TAU, AdaptiveTemperature, LearnedTemperature, PerplexityTemperature, Temperature
from .inputs import number


class Shape(NamedTuple):
    """How a loss read its projections: images of the (global) batch, heads, width."""

    N: int
    C: int
    d: int


class Range(TypedDict):
    """Of τ, as operators take it."""

    tau_min: float
    tau_max: float


class Loss(nn.Module):
    """Temperature, backend and statistics, shared by the four losses."""

    _no_scalar: ClassVar[str] = ""
    """Why a loss takes no `LearnedTemperature`; empty if it does, as those over negatives."""

    def __init__(self, temperature: Temperature, backend: BackendName) -> None:
        super().__init__()
        one_of("backend", backend, ops.BACKENDS)
        accepted = (
            "a float or an AdaptiveTemperature"
            if self._no_scalar
            else "a float, an AdaptiveTemperature, a LearnedTemperature or a PerplexityTemperature"
        )
        if isinstance(temperature, LearnedTemperature) and self._no_scalar:
            raise TypeError(f"temperature must be {accepted}, got LearnedTemperature: {self._no_scalar}")
        if isinstance(temperature, PerplexityTemperature) and self._no_scalar:
            raise TypeError(
                f"temperature must be {accepted}, got PerplexityTemperature: the loss has no negatives, whose "
                "perplexity it is"
            )
        if isinstance(temperature, AdaptiveTemperature) and temperature.share == "row" and self._no_scalar:
            raise ValueError("temperature.share must be 'pair' where the loss has no anchors with negatives, got 'row'")
        if not isinstance(temperature, AdaptiveTemperature | LearnedTemperature | PerplexityTemperature):
            temperature = number("temperature", temperature, SMALLEST_TAU, accepted)
        self.temperature = temperature
        self.backend = backend
        self.last_stats: Stats = {}
        self.last_shape: Shape | None = None
        self._warned = False

    @property
    def adaptive(self) -> AdaptiveTemperature | None:
        """The temperature module, None if the temperature is one number."""
        return self.temperature if isinstance(self.temperature, AdaptiveTemperature) else None

    @property
    def _learns(self) -> bool:
        """Whether τ has parameters."""
        return isinstance(self.temperature, AdaptiveTemperature | LearnedTemperature)

    @property
    def _by_anchor(self) -> bool:
        """Whether an anchor has one τ, for its positive and for all its negatives, and not every pair."""
        if isinstance(self.temperature, AdaptiveTemperature):
            return self.temperature.share == "row"
        return isinstance(self.temperature, PerplexityTemperature)

    def _range(self) -> Range:
        """tau_min and tau_max for an operator; a constant is the range of width zero."""
        temperature = self.temperature
        if isinstance(temperature, AdaptiveTemperature | PerplexityTemperature):
            return {"tau_min": temperature.tau_min, "tau_max": temperature.tau_max}
        if isinstance(temperature, LearnedTemperature):
            low, high = temperature.operator_range
            return {"tau_min": low, "tau_max": high}
        return {"tau_min": temperature, "tau_max": temperature}

    def _offset(self, like: Tensor) -> Tensor | None:
        """The score's offset in the dtype in which `like` is evaluated."""
        dtype = widened(like.dtype)
        if isinstance(self.temperature, LearnedTemperature):
            return self.temperature.score_offset(dtype)
        offset = None if self.adaptive is None else self.adaptive.score_offset
        return None if offset is None else offset.to(dtype)

    def _phi_of(
        self, x: Tensor | None, product: torch.dtype | None = None, *, halves: bool = False, table: bool = False
    ) -> Prepared:
        """φ of rows x (C, R, d) as the operators take it.

        `halves`: those of two views that x holds; `table`: the whole in float32 or better, beside the product. Where
        anchors have one τ each, that is the table (C, R, 1), and there is nothing else.
        """
        adaptive = self.adaptive
        if adaptive is not None and self._by_anchor and x is not None:
            return Prepared(adaptive.of_rows(x).unsqueeze(-1), None, None, None, None)
        if not self._learns or x is None:
            return Prepared(None, None, None, None, None)
        if adaptive is None or not (ops.fused(self.backend, x) and adaptive.is_plain):
            # Of one number for all pairs r is what the offset says.
            features = x.new_zeros(*x.shape[:2], 1) if adaptive is None else adaptive.features(x)
            n = x.shape[1] // 2
            first, second = (features[:, :n], features[:, n:]) if halves else (None, None)
            return Prepared(features, None if product is None else features.to(product), first, second, None)
        out = phi(x, adaptive.weights(x.dtype), adaptive.products(product or x.dtype))
        cosine = adaptive.score == "cosine"
        if not cosine and not halves and product == out.dtype:
            return Prepared(out, out, None, None, None)
        return ops.prepared(
            out,
            None,
            product=product,
            factor=math.sqrt(adaptive.scale) if cosine else 1.0,
            normalise=cosine,
            table=table,
            halves="ready" if halves else "none",
            backend=self.backend,
        )

    def _phi_of_candidates(self, x: Tensor | None, product: torch.dtype) -> Tensor | None:
        """φ of rows x (C, R, d) that are candidates alone; None where τ does not look at them."""
        return None if self._by_anchor else self._phi_of(x, product).product

    def _product_dtype(self, z: Tensor) -> torch.dtype:
        """What matrix products of the input `z` read; call it outside of `full_precision`."""
        if ops.resolve_widened(self.backend, z) != "triton":
            return at_least_float32(z).dtype
        if torch.is_autocast_enabled(z.device.type):
            return torch.get_autocast_dtype(z.device.type)
        return z.dtype

    def _check_width(self, width: int, meaning: str, argument: str, like: Tensor) -> None:
        """That φ reads vectors of `width`, and stands on the device of the input `argument`."""
        if self.adaptive is None:
            return
        if self.adaptive.dim != width:
            raise ValueError(
                f"temperature.dim must be {meaning} = {width} for this {argument}, got {self.adaptive.dim}"
            )
        device = self.adaptive.phi[0].weight.device
        if device != like.device:
            raise ValueError(
                f"temperature must be on the device of {argument}, {like.device}, got {device}; move one of them"
            )

    def _note_shape(self, argument: str, n: int, like: Tensor, stacklevel: int = 5, fewest: int = 2) -> None:
        """Keeps the shape of a call, N images over all processes; `like` is the argument as (C, n, d).

        `stacklevel` is that of the call of the module.
        """
        if n < fewest:
            raise ValueError(f"{argument} must have a batch of N ≥ {fewest} rows, got {n}")
        heads, _, dim = like.shape
        if isinstance(self.temperature, PerplexityTemperature):
            self.temperature.check_heads(heads)
        self.last_shape = Shape(n, heads, dim)
        if heads > n and not torch.compiler.is_compiling() and not self._warned:
            self._warned = True
            warnings.warn(
                f"{argument} is read as (N, C, d): a batch of N = {n} images, C = {heads} heads, d = {dim}. "
                f"If it is (C, N, d), pass {argument}.transpose(0, 1)",
                stacklevel=stacklevel,
            )

    def extra_repr(self) -> str:
        hidden = {"adaptive", "last_stats", "training"}
        if self.last_shape is None:
            hidden.add("last_shape")
        settings = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in hidden}
        return ", ".join(f"{k}={v!r}" for k, v in settings.items())


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Autocast is off on the device of `like`."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)  # which meta has not
