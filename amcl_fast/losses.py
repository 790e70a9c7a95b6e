"""The losses of the four frameworks as modules, with no trainer in sight.

Each is an operator plus a temperature: a float gives the framework's baseline (NT-Xent, DCL, MoCo's InfoNCE,
SimSiam, Barlow Twins), an `AdaptiveTemperature` gives its AMCL form. Source: Wang et al., "Adaptive Multi-head
Contrastive Learning", ECCV 2024 (arXiv 2310.05615).

Common to all:

- Projections are (N, C, d), or (N, d) for one head. Heads are summed, anchors averaged.
- Everything is evaluated in float32 or better, also under autocast, since 1/τ amplifies rounding. One exception:
  on tensor cores (backend `triton`) the matrix products read half precision if the inputs have it or autocast
  asks for it; what follows them is float32. The result is a 0-dim float32 tensor (float64 for float64 inputs).
- A constant temperature has a constant regulariser, which is left out: `beta` matters only with an
  `AdaptiveTemperature`.
- Rows may have any finite size. One shorter than 1e-12, a row of zeros say, is divided by 1e-12 instead of its norm,
  as torch's normalize does: its gradient is up to 1e12 times that of a direction, no more.
- NaN and infinity in an input are a ValueError on the CPU. On other devices, where looking would wait for the
  device, and in compiled code, they make the loss NaN, never a number.
- Derivatives are first derivatives, backwards. Forward-mode differentiation, torch.func and second derivatives take
  backend="reference", which `auto` is under the first two; the other backends refuse them.
- `last_shape` is how the latest call read its projections, and the representation shows it; a batch N smaller than
  the number of heads C, as (C, N, d) would have it, is a warning, once.
- `last_stats` describes the latest call; 0-dim detached tensors, so reading them is the only synchronisation. Empty
  after a call in forward mode or torch.func. `amcl_fast.diagnose` says what is wrong with them.
- On a GPU a step on the backend `triton` waits for nothing and depends on no value, so CUDA graphs capture it, without
  `gather`: `torch.cuda.make_graphed_callables(loss, (z1, z2))`, or the whole step (docs/losses.md).
- `recommended(dim)` makes the AMCL form that trains, `released(dim)` the authors' own.
- ValueError or TypeError names the argument that is wrong, what was given and what is accepted.
"""

import math
import warnings
from contextlib import AbstractContextManager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from . import ops
from .distributed import gather_rows, row_counts, world
from .ops.phi import phi
from .reference import NEGATIVES, Stats
from .rows import Prepared, at_least_float32, bounded, may_look, transformed, unit
from .temperature import LARGEST, SMALLEST, AdaptiveTemperature

__all__ = ["BarlowTwinsLoss", "MoCoLoss", "SimCLRLoss", "SimSiamLoss"]


class NonFiniteInputError(ValueError):
    """An input of a loss is NaN or infinite."""


class Shape(NamedTuple):
    """How a loss read its projections: images of the (global) batch, heads, width."""

    N: int
    C: int
    d: int


class _Loss(nn.Module):
    """Temperature, backend and statistics, shared by the four losses."""

    def __init__(self, temperature: float | AdaptiveTemperature, backend: str) -> None:
        super().__init__()
        if backend not in ops.BACKENDS:
            raise ValueError(f"backend must be one of {ops.BACKENDS}, got {backend!r}")
        if not isinstance(temperature, AdaptiveTemperature):
            temperature = _number("temperature", temperature, SMALLEST)
        self.temperature = temperature
        self.backend = backend
        self.last_stats: Stats = {}
        self.last_shape: Shape | None = None
        self._warned = False

    @property
    def adaptive(self) -> AdaptiveTemperature | None:
        """The temperature module, None if the temperature is a constant."""
        return self.temperature if isinstance(self.temperature, AdaptiveTemperature) else None

    def _range(self) -> dict[str, float]:
        """tau_min and tau_max for an operator; a constant is the range of width zero."""
        adaptive = self.adaptive
        if adaptive is None:
            return {"tau_min": float(self.temperature), "tau_max": float(self.temperature)}  # type: ignore[arg-type]
        return {"tau_min": adaptive.tau_min, "tau_max": adaptive.tau_max}

    def _offset(self, like: Tensor) -> Tensor | None:
        """The score's offset in the dtype in which `like` is evaluated."""
        offset = None if self.adaptive is None else self.adaptive.score_offset
        return None if offset is None else offset.to(torch.promote_types(like.dtype, torch.float32))

    def _features(self, x: Tensor | None, product: torch.dtype | None = None, *, halves: bool = False) -> Prepared:
        """φ of rows x (C, R, d) as the operators take it; `halves`: those of two views that x holds."""
        adaptive = self.adaptive
        if adaptive is None or x is None:
            return Prepared(None, None, None, None, None)
        if not (ops.fused(self.backend, x) and adaptive.is_plain):
            table = adaptive.features(x)
            n = x.shape[1] // 2
            first, second = (table[:, :n], table[:, n:]) if halves else (None, None)
            return Prepared(table, None if product is None else table.to(product), first, second, None)
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
            halves="ready" if halves else "none",
            backend=self.backend,
        )

    def _product_dtype(self, z: Tensor) -> torch.dtype:
        """What matrix products of the input `z` read; call it outside of `_full_precision`."""
        if ops.resolve(self.backend, z) != "triton":
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
            raise ValueError(f"temperature is on {device}, {argument} on {like.device}; move one of them")

    def _note_shape(self, argument: str, n: int, like: Tensor) -> None:
        """Keeps the shape of a call, N images over all processes; `like` is the argument as (C, n, d)."""
        if n < 2:
            raise ValueError(f"{argument} must have a batch of N ≥ 2 rows, got {n}")
        heads, _, dim = like.shape
        self.last_shape = Shape(n, heads, dim)
        if heads > n and not torch.compiler.is_compiling() and not self._warned:
            self._warned = True
            warnings.warn(
                f"{argument} is read as (N, C, d): a batch of N = {n} images, C = {heads} heads, d = {dim}. "
                f"If it is (C, N, d), pass {argument}.transpose(0, 1)",
                stacklevel=5,  # the call of the module
            )

    def extra_repr(self) -> str:
        hidden = {"adaptive", "last_stats", "training"}
        if self.last_shape is None:
            hidden.add("last_shape")
        settings = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in hidden}
        return ", ".join(f"{k}={v!r}" for k, v in settings.items())


class _Contrast(_Loss):
    """The settings of the contrast, shared by SimCLR and MoCo."""

    def __init__(
        self,
        temperature: float | AdaptiveTemperature,
        negatives: str,
        top_k: int | None,
        beta: float,
        include_positive: bool,
        backend: str,
    ) -> None:
        super().__init__(temperature, backend)
        if negatives not in NEGATIVES:
            raise ValueError(f"negatives must be one of {NEGATIVES}, got {negatives!r}")
        if negatives == "softmax":
            top_k = None
        elif top_k is None or isinstance(top_k, bool) or not isinstance(top_k, int):
            raise TypeError(f"top_k must be an int with negatives={negatives!r}, got {top_k!r}")
        elif top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if include_positive and negatives == "topk_mean":
            raise ValueError(
                "include_positive adds the positive to a log-sum-exp: it takes negatives='topk_softmax' or "
                "'softmax', got 'topk_mean'"
            )
        self.negatives = negatives
        self.top_k = top_k
        self.beta = _number("beta", beta)
        self.include_positive = bool(include_positive)

    def _evaluate(
        self,
        rows: Prepared,
        phi: Prepared,
        candidates: Tensor | None,
        phi_candidates: Tensor | None,
        weight: float,
    ) -> Tensor:
        """`weight` times the sum of the positive and negative terms of all anchors and heads.

        `rows` are 2N anchors, the x of every pair, then its y, normalised. Their halves are the N pairs not normalised:
        `align` does it, and doing it twice would square the gradient of a row of zeros. Similarity and r are symmetric,
        so each pair is evaluated once for both of its anchors. `phi` is φ of the anchors.
        """
        anchors = rows.product
        assert anchors is not None and rows.first is not None and rows.second is not None
        offset = self._offset(rows.first)
        positive, of_positives = ops.align(
            rows.first,
            rows.second,
            phi.first,
            phi.second,
            offset,
            **self._range(),
            weight=1.0,
            beta=self.beta,
            backend=self.backend,
        )
        # The positive's logit s/τ − β·Ω(τ) is the negated positive term.
        assert candidates is not None
        late = ops.fused(self.backend, anchors)
        both = None if late else torch.cat([positive, positive], dim=1)
        negative, of_negatives = ops.contrast(
            anchors,
            candidates,
            phi.product,
            phi_candidates,
            offset,
            rows.skip,
            **self._range(),
            negatives=self.negatives,
            top_k=self.top_k,
            beta=self.beta,
            extra=-both if self.include_positive and both is not None else None,
            backend=self.backend,
        )
        self.last_stats = _named(of_positives, of_negatives)
        if both is None:
            return ops.total(positive, negative, joined=self.include_positive, weight=weight, backend=self.backend)
        return (both + negative).sum() * weight


class SimCLRLoss(_Contrast):
    """SimCLR: every row of [z1; z2] is an anchor, all other rows but its positive are its negatives.

    Adaptive temperature: AMCL, Eq. 2.1 (and 2.4 with `include_positive`). Constant temperature: NT-Xent is
    `SimCLRLoss(0.5, negatives="softmax", include_positive=True)`, and the decoupled loss (DCL) the same without
    the positive.

    The defaults are the released code's. With a head that has no BatchNorm after its last layer they make all
    projections equal, and so does every form over less than nearly all of the negatives: while the κ hardest of them
    are nearer to an anchor than its positive is, all rows are pulled together (docs/training.md). `recommended` is
    the AMCL that trains whatever the head.

    Args:
        temperature: constant τ, from 1e-18 to 3.4e38, or an `AdaptiveTemperature` of dim d.
        negatives: `topk_mean` (the released code's form), `topk_softmax` (κ = 1 is Eq. 2.1 exactly) or
            `softmax` (all negatives).
        top_k: κ, number of hardest negatives per anchor and head; all if fewer exist. Ignored with `softmax`.
        beta: β ≥ 0, weight of the temperature regulariser.
        include_positive: add the positive to the log-sum-exp (InfoNCE); not with `topk_mean`.
        gather: take the candidates from all processes of torch.distributed. The mean of what the processes
            return is the loss of the global batch, and gradients are right under DDP, which averages them. Batches
            may differ in size; the host waits for the sizes.
        backend: `auto`, `triton`, `native` or `reference`.
    """

    def __init__(
        self,
        temperature: float | AdaptiveTemperature,
        *,
        negatives: str = "topk_mean",
        top_k: int | None = 100,
        beta: float = 1e-4,
        include_positive: bool = False,
        gather: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, negatives, top_k, beta, include_positive, backend)
        self.gather = bool(gather)

    @classmethod
    def recommended(cls, dim: int, *, gather: bool = False, backend: str = "auto") -> Self:
        """AMCL that trains from scratch: τ from 0.1 to 1 by a bounded score, all negatives, and the positive.

        Heads with and without BatchNorm, SGD and AdamW, batches from 64 to 512, and up to 1024 with the same range but
        for where it begins (docs/training.md has the runs).

        Args:
            dim: projection width d, of every head.
            gather, backend: as the class's.
        """
        return cls(
            _bounded(dim, 0.1, 1.0, offset=0.5),
            negatives="softmax",
            include_positive=True,
            gather=gather,
            backend=backend,
        )

    @classmethod
    def released(cls, dim: int, *, gather: bool = False, backend: str = "auto") -> Self:
        """AMCL as its authors released it: the class's defaults. Its τ all go to τ_min within the first steps.

        Args: as `recommended`.
        """
        return cls(AdaptiveTemperature(dim), gather=gather, backend=backend)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of projections z1, z2 (N, C, d) or (N, d) of two views; N ≥ 2 over all processes."""
        x, y = _heads_first(z1=z1, z2=z2)
        n = x.shape[1]
        rank, processes = world() if self.gather else (0, 1)
        counts = row_counts(x) if processes > 1 else [n]
        self._note_shape("z1", sum(counts), x)
        self._check_width(x.shape[-1], "the projection width d", "z1", z1)
        product_dtype = self._product_dtype(z1)
        with _full_precision(x):
            rows = ops.prepared(
                x,
                y,
                product=product_dtype,
                table=self.adaptive is not None or processes > 1,
                halves="raw",
                skip=2 * sum(counts[:rank]),
                backend=self.backend,
            )
            phi = self._features(rows.table, product_dtype, halves=True)
            # One table: what comes back to its rows as anchors and as candidates is one gradient.
            candidates, phi_candidates = rows.product, phi.product
            if processes > 1:
                assert rows.table is not None
                gathered = gather_rows(rows.table, [2 * count for count in counts])
                candidates = gathered.to(product_dtype)
                phi_candidates = self._features(gathered, product_dtype).product
            # The mean over all anchors of the processes is the mean of what they return.
            loss = self._evaluate(rows, phi, candidates, phi_candidates, processes / (2 * sum(counts)))
            return _checked(loss, z1=z1, z2=z2)


class MoCoLoss(_Contrast):
    """MoCo: the negatives of queries and keys are a queue; the mean of both directions q→k and k→q.

    k and the queue carry no gradient, but φ learns from both. Adaptive temperature: AMCL, Eq. 2.1 (and 2.4 with
    `include_positive`) as in the authors' released code. Constant temperature: MoCo's InfoNCE is
    `MoCoLoss(0.1, negatives="softmax", include_positive=True)`, made symmetric.

    Args: as `SimCLRLoss`, and what is said there of the defaults holds here.
    """

    def __init__(
        self,
        temperature: float | AdaptiveTemperature,
        *,
        negatives: str = "topk_mean",
        top_k: int | None = 100,
        beta: float = 1e-4,
        include_positive: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, negatives, top_k, beta, include_positive, backend)

    @classmethod
    def recommended(cls, dim: int, *, backend: str = "auto") -> Self:
        """AMCL that trains from scratch: τ from 0.1 to 1 by a bounded score, the whole queue, and the positive.

        Best with a head that ends with BatchNorm. Without, MoCo's rows stay in a narrow cone for hundreds of steps,
        with InfoNCE as with AMCL, and learn slowly there; with the κ hardest keys they do not learn
        (docs/training.md).

        Args:
            dim: projection width d, of every head.
            backend: as the class's.
        """
        return cls(_bounded(dim, 0.1, 1.0), negatives="softmax", include_positive=True, backend=backend)

    @classmethod
    def released(cls, dim: int, *, backend: str = "auto") -> Self:
        """AMCL as its authors released it: the class's defaults. Its τ all go to τ_min within the first steps.

        Args: as `recommended`.
        """
        return cls(AdaptiveTemperature(dim), backend=backend)

    def forward(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        """Loss of queries q and keys k, (N, C, d) or (N, d), against a queue (C, d, K) or (d, K).

        Queries and keys are normalised here; the queue must hold L2-normalised keys already.
        """
        x, y = _heads_first(q=q, k=k)
        self._note_shape("q", x.shape[1], x)
        self._check_width(x.shape[-1], "the projection width d", "q", q)
        keys = _queue(queue, q, x)
        product_dtype = self._product_dtype(q)
        with _full_precision(x):
            rows = ops.prepared(
                x,
                y.detach(),
                product=product_dtype,
                table=self.adaptive is not None,
                halves="raw",
                backend=self.backend,
            )
            phi = self._features(rows.table, product_dtype, halves=True)
            of_phi = None if self.adaptive is None else at_least_float32(keys)
            phi_candidates = self._features(of_phi, product_dtype).product
            # Whole rows for what reads them one by one, transposed and rounded in one pass.
            if ops.fused(self.backend, x):
                candidates = keys.to(product_dtype, memory_format=torch.contiguous_format).contiguous()
            else:
                candidates = at_least_float32(keys)
            loss = self._evaluate(rows, phi, candidates, phi_candidates, 1 / (2 * x.shape[1]))
            return _checked(loss, q=q, k=k, queue=queue)


class SimSiamLoss(_Loss):
    """SimSiam: predictions align with the other view's projections, which carry no gradient (Eq. 1.2, 2.2).

    With τ1 = τ(p1, z2) and τ2 = τ(p2, z1): −½·s(p1, z2)/τ1 − ½·s(p2, z1)/τ2 + β·Ω(τ1) + β·Ω(τ2).

    Args:
        temperature: constant τ (SimSiam itself is 1), or an `AdaptiveTemperature` of dim d.
        beta: β ≥ 0, weight of the temperature regulariser.
        backend: `auto`, `triton`, `native` or `reference`.
    """

    def __init__(
        self, temperature: float | AdaptiveTemperature = 1.0, *, beta: float = 1e-4, backend: str = "auto"
    ) -> None:
        super().__init__(temperature, backend)
        self.beta = _number("beta", beta)

    @classmethod
    def recommended(cls, dim: int, *, backend: str = "auto") -> Self:
        """AMCL whose temperatures stay inside their range: the exact likelihood, β = 1, and τ around 1/d.

        −s/(2τ) + β·Ω(τ) is least at τ = (2β − s)/(β·d). It is not shown to beat the baseline, `SimSiamLoss()`: over
        three seeds of a short study both stay within a few points of the untrained encoder (docs/frameworks.md).

        Args:
            dim: projection width d, of every head.
            backend: as the class's.
        """
        return cls(_bounded(dim, 0.256, 2.56, per_width=True), beta=1.0, backend=backend)

    @classmethod
    def released(cls, dim: int, *, backend: str = "auto") -> Self:
        """AMCL as its authors released it: β = 1e-4. Its τ all go to τ_min within the first steps.

        Args: as `recommended`.
        """
        return cls(AdaptiveTemperature(dim), backend=backend)

    def forward(self, p1: Tensor, z2: Tensor, p2: Tensor, z1: Tensor) -> Tensor:
        """Loss of predictions p1, p2 and projections z1, z2 of the two views, (N, C, d) or (N, d)."""
        p1_, z2_, p2_, z1_ = _heads_first(p1=p1, z2=z2, p2=p2, z1=z1)
        self._note_shape("p1", p1_.shape[1], p1_)
        self._check_width(p1_.shape[-1], "the projection width d", "p1", p1)
        with _full_precision(p1_):
            first, of_first = self._direction(p1_, z2_.detach())
            second, of_second = self._direction(p2_, z1_.detach())
            self.last_stats = _named(_merged(of_first, of_second))
            return _checked((first + second).mean(dim=1).sum(), p1=p1, z2=z2, p2=p2, z1=z1)

    def _direction(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Stats]:
        if ops.fused(self.backend, prediction):  # whose kernel reads half precision as float32
            phi = Prepared(None, None, None, None, None)
            if self.adaptive is not None:
                rows = ops.prepared(prediction, target, table=True, backend=self.backend)
                phi = self._features(rows.table, halves=True)
            phi_p, phi_z = phi.first, phi.second
        else:
            prediction, target = at_least_float32(prediction), at_least_float32(target)
            phi_p = phi_z = None
            if self.adaptive is not None:
                phi_p, phi_z = (self.adaptive.features(unit(z)) for z in (prediction, target))
        return ops.align(
            prediction,
            target,
            phi_p,
            phi_z,
            self._offset(prediction),
            **self._range(),
            weight=0.5,
            beta=self.beta,
            backend=self.backend,
        )


class BarlowTwinsLoss(_Loss):
    """Barlow Twins: the correlation of two views' channels approaches the identity (Eq. 1.3, 2.3).

    φ reads channel vectors of the raw projections, so an `AdaptiveTemperature` fixes the global batch size N.

    Args:
        temperature: constant τ (Barlow Twins itself is 1), or an `AdaptiveTemperature` of dim N; τ ≥ 1e-12.
        lambd: λ ≥ 0, weight of the off-diagonal.
        beta: β ≥ 0, weight of the temperature regulariser.
        gather: correlate the batches of all processes of torch.distributed. Every process returns the loss of
            the global batch; gradients are right under DDP, which averages them. Batches may differ in size; the
            host waits for the sizes.
        backend: `auto`, `triton`, `native` or `reference`.
    """

    def __init__(
        self,
        temperature: float | AdaptiveTemperature = 1.0,
        *,
        lambd: float = 5e-3,
        beta: float = 1e-6,
        gather: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, backend)
        # Slopes hold 1/τ³, which must be a number of float32.
        if (smallest := self._range()["tau_min"]) < 1e-12:
            raise ValueError(f"temperature must be at least 1e-12 for Barlow Twins, got {smallest}")
        self.lambd = _number("lambd", lambd)
        self.beta = _number("beta", beta)
        self.gather = bool(gather)

    @classmethod
    def recommended(cls, dim: int, *, gather: bool = False, backend: str = "auto") -> Self:
        """AMCL whose temperatures stay inside their range: τ from 0.8 to 1.25 by a bounded score.

        No adaptive setting was found that beats the baseline, `BarlowTwinsLoss()` (docs/frameworks.md): this is the
        one to start from where temperatures are the subject, and the baseline where they are not.

        Args:
            dim: global batch size N, the width of what φ reads here.
            gather, backend: as the class's.
        """
        return cls(_bounded(dim, 0.8, 1.25), gather=gather, backend=backend)

    @classmethod
    def released(cls, dim: int, *, gather: bool = False, backend: str = "auto") -> Self:
        """AMCL as its authors released it. At their size every τ starts at τ_min, and the loss near 1e13.

        Args: as `recommended`.
        """
        return cls(AdaptiveTemperature(dim), gather=gather, backend=backend)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of projections z1, z2 (N, C, d) or (N, d) of two views; N ≥ 2 over all processes."""
        x, y = _heads_first(z1=z1, z2=z2)
        if self.gather and world()[1] > 1:
            counts = row_counts(x)
            x, y = gather_rows(x, counts), gather_rows(y, counts)
        self._note_shape("z1", x.shape[1], x)
        self._check_width(x.shape[1], "the global batch size N", "z1", z1)
        product_dtype = self._product_dtype(z1)
        with _full_precision(x):
            # Channel vectors, (C, d, N), each in one piece: all that follows reads and writes along the batch.
            # φ reads them too: from a size of 1e12 on, its score does not change with it, or τ is at a bound.
            x, y = (bounded(at_least_float32(z).mT.contiguous()) for z in (x, y))
            heads, on, off = ops.decorrelate(
                _standardised(x).to(product_dtype),
                _standardised(y).to(product_dtype),
                self._features(x, product_dtype).product,
                self._features(y, product_dtype).product,
                self._offset(x),
                **self._range(),
                lambd=self.lambd,
                beta=self.beta,
                backend=self.backend,
            )
            self.last_stats = _named(on, off)
            return _checked(heads.sum(), z1=z1, z2=z2)


def _bounded(dim: int, low: float, high: float, *, per_width: bool = False, offset: float = 0.0) -> AdaptiveTemperature:
    """τ from `low` to `high`, or to `high / dim`, with the score that does not see how long φ's vectors are."""
    # A width that is none is AdaptiveTemperature's to name.
    width = dim if per_width and isinstance(dim, int) and dim > 0 else 1
    return AdaptiveTemperature(dim, tau_min=low / width, tau_max=high / width, score="cosine", offset=offset)


def _standardised(x: Tensor) -> Tensor:
    """Channel vectors (C, d, N) with zero mean and unit (unbiased) standard deviation along the batch."""
    centred = x - x.mean(-1, keepdim=True)
    # What rounding left in the mean: for a channel of nearly equal values it is as large as their deviation.
    centred = centred - centred.detach().mean(-1, keepdim=True)
    # The same as x.std, which takes several times as long on a CPU.
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(x.shape[-1] - 1)
    return centred * (deviation + 1e-9).reciprocal()


def _heads_first(**inputs: Tensor) -> list[Tensor]:
    """Checked projections, (N, C, d) or (N, d), as (C, N, d)."""
    (first_name, first), *others = inputs.items()
    for name, z in inputs.items():
        if not isinstance(z, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(z).__name__}")
        if not z.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {z.dtype}")
        if z.dim() not in (2, 3):
            raise ValueError(f"{name} must have shape (N, C, d) or (N, d), got {tuple(z.shape)}")
        if 0 in z.shape[1:]:
            raise ValueError(f"{name} must have at least one head and one channel, got {tuple(z.shape)}")
    for name, z in others:
        if z.shape != first.shape:
            raise ValueError(f"{name} must have the shape of {first_name}, {tuple(first.shape)}, got {tuple(z.shape)}")
        _check_kind(name, z, first_name, first)
    heads = [z if z.dim() == 3 else z.unsqueeze(1) for z in inputs.values()]
    return [z.transpose(0, 1) for z in heads]


def _queue(queue: Tensor, q: Tensor, like: Tensor) -> Tensor:
    """A checked queue, (C, d, K) or (d, K), as (C, K, d) without gradient, a view; `like` is q as (C, N, d)."""
    if not isinstance(queue, Tensor):
        raise TypeError(f"queue must be a torch.Tensor, got {type(queue).__name__}")
    _check_kind("queue", queue, "q", q)
    heads, _, dim = like.shape
    keys = queue.unsqueeze(0) if queue.dim() == 2 else queue
    if keys.dim() != 3 or keys.shape[:2] != (heads, dim) or keys.shape[2] < 1:
        raise ValueError(
            f"queue must have shape (C, d, K) = ({heads}, {dim}, K ≥ 1), or (d, K) for one head, "
            f"got {tuple(queue.shape)}"
        )
    return keys.detach().mT


def _check_kind(name: str, z: Tensor, reference_name: str, reference: Tensor) -> None:
    if z.dtype != reference.dtype:
        raise TypeError(f"{name} must have the dtype of {reference_name}, {reference.dtype}, got {z.dtype}")
    if z.device != reference.device:
        raise ValueError(f"{name} must be on the device of {reference_name}, {reference.device}, got {z.device}")


def _number(name: str, value: float, smallest: float = 0.0) -> float:
    """A float from `smallest` to what float32, in which most losses are evaluated, can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        accepted = "a float or an AdaptiveTemperature" if name == "temperature" else "a float"
        raise TypeError(f"{name} must be {accepted}, got {type(value).__name__}")
    if not smallest <= value <= LARGEST:
        raise ValueError(f"{name} must be between {smallest:.3g} and {LARGEST:.3g}, got {value}")
    return float(value)


def _checked(loss: Tensor, **inputs: Tensor) -> Tensor:
    """`loss`, unless it is not finite because an input is not."""
    if not may_look(loss) or math.isfinite(loss.detach()):
        return loss
    for name, z in inputs.items():
        if bad := int((~z.detach().isfinite()).sum()):
            raise NonFiniteInputError(
                f"{name} must be finite, got {bad} of {z.numel()} values that are NaN or infinite"
            )
    return loss


def _full_precision(like: Tensor) -> AbstractContextManager[None]:
    return torch.autocast(like.device.type, enabled=False)


def _named(positives: Stats, negatives: Stats | None = None) -> Stats:
    """`last_stats`: tau_positive_mean, …, similarity_positive, and the same of the negatives.

    Empty in a transform of torch.func, whose tensors mean nothing outside of it.
    """
    result: Stats = {}
    if transformed():
        return result
    for group, values in (("positive", positives), ("negative", negatives or {})):
        for key, value in values.items():
            kind, _, measure = key.partition("_")
            result[f"{kind}_{group}_{measure}" if measure else f"{kind}_{group}"] = value
    return result


def _merged(a: Stats, b: Stats) -> Stats:
    """Statistics of two sets of equal size taken together."""
    both = torch.stack([*a.values(), *b.values()]).unflatten(0, (2, -1))
    merged = dict(zip(a, both.mean(0).unbind(), strict=True))
    of = {key: both[:, i] for i, key in enumerate(a)}
    # Within the sets, and between their means.
    merged["tau_std"] = (of["tau_std"].square().mean() + of["tau_mean"].var(correction=0)).sqrt()
    merged["tau_min"] = of["tau_min"].amin()
    return merged
