"""SimSiam's loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from torch import Tensor

from .. import ops
from ..ops.backends import BackendName
from ..reference import Stats
from ..rows import Prepared, at_least_float32, unit
from ..temperature import AdaptiveTemperature, cosine_temperature
from .base import Loss, full_precision
from .inputs import finite, heads_first, number
from .statistics import merged, named
from .views import Views, as_heads, by_name, check_whole, joined, view_pairs, views_first


class SimSiamLoss(Loss):
    """SimSiam: predictions align with the other view's projections, which carry no gradient (Eq. 1.2, 2.2).

    With τ1 = τ(p1, z2) and τ2 = τ(p2, z1): −½·s(p1, z2)/τ1 − ½·s(p2, z1)/τ2 + β·Ω(τ1) + β·Ω(τ2).

    Args:
        temperature: constant τ (SimSiam itself is 1), or an `AdaptiveTemperature` of dim d.
        beta: β ≥ 0, weight of the temperature regulariser.
        backend: `auto`, `triton`, `native` or `reference`.
    """

    _no_scalar = "the loss is proportional to 1/τ, which would only carry a learned scalar to an end of its range"

    def __init__(
        self, temperature: float | AdaptiveTemperature = 1.0, *, beta: float = 1e-4, backend: BackendName = "auto"
    ) -> None:
        super().__init__(temperature, backend)
        self.beta = number("beta", beta)

    @classmethod
    def recommended(cls, dim: int, *, backend: BackendName = "auto") -> Self:
        """AMCL whose temperatures stay inside their range: the exact likelihood, β = 1, and τ around 1/d.

        −s/(2τ) + β·Ω(τ) is least at τ = (2β − s)/(β·d). It is not shown to beat the baseline, `SimSiamLoss()`: over
        three seeds of a short study both stay within a few points of the untrained encoder (docs/frameworks.md).

        Args:
            dim: projection width d, of every head.
            backend: as the class's.
        """
        return cls(cosine_temperature(dim, 0.256, 2.56, per_width=True), beta=1.0, backend=backend)

    @classmethod
    def released(cls, dim: int, *, backend: BackendName = "auto") -> Self:
        """AMCL as its authors released it: β = 1e-4. Its τ all go to τ_min within the first steps.

        Args: as `recommended`.
        """
        return cls(AdaptiveTemperature(dim), backend=backend)

    if TYPE_CHECKING:  # a call of nn.Module is untyped

        def __call__(self, p1: Tensor, z2: Tensor, p2: Tensor, z1: Tensor) -> Tensor: ...

    def forward(self, p1: Tensor, z2: Tensor, p2: Tensor, z1: Tensor) -> Tensor:
        """Loss of predictions p1, p2 and projections z1, z2 of the two views, (N, C, d) or (N, d)."""
        p1_, z2_, p2_, z1_ = heads_first(p1=p1, z2=z2, p2=p2, z1=z1)
        self._note_shape("p1", p1_.shape[1], p1_)
        self._check_width(p1_.shape[-1], "the projection width d", "p1", p1)
        with full_precision(p1_):
            first, of_first = self._direction(p1_, z2_.detach())
            second, of_second = self._direction(p2_, z1_.detach())
            self.last_stats = named(merged([of_first, of_second], [1, 1]))
            return finite((first + second).mean(dim=1).sum(), p1=p1, z2=z2, p2=p2, z1=z1)

    def of_views(self, predictions: Views, projections: Views, targets: Sequence[int] | None = None) -> Tensor:
        """Loss of V ≥ 2 views: the mean, over the pairs of a view and a target that it attends to, of −s/τ + 2β·Ω(τ).

        s and τ are of the view's predictions and the target's projections. With two views it is the loss of a call.

        Args:
            predictions, projections: of the V views, (N, C, d) or (N, d) each, a sequence of them or one tensor.
            targets: places of the views that the others attend to; None: all.

        Raises:
            ValueError, TypeError: as a call; fewer than two views, or other numbers of them; targets that are no views,
                or not each once.
        """
        pairs = view_pairs("predictions", predictions, targets)
        count = len(predictions)
        check_whole("projections", projections)
        if not isinstance(projections, Sequence | Tensor) or len(projections) != count:
            got = len(projections) if isinstance(projections, Sequence | Tensor) else type(projections).__name__
            raise ValueError(f"projections must be those of the {count} views, one tensor each, got {got}")
        if pairs.are_two_views:
            (p1, p2), (z1, z2) = predictions, projections
            return self(p1, z2, p2, z1)
        of_p, of_z = views_first(predictions=predictions, projections=projections)
        x = of_p[0]
        self._note_shape("predictions[0]", x.shape[1], x, stacklevel=3)
        self._check_width(x.shape[-1], "the projection width d", "predictions[0]", predictions[0])
        with full_precision(x):
            p, z = joined((predictions, of_p)), joined((projections, of_z)).detach()
            phi_p = phi_z = None
            if self.adaptive is not None:
                tables = [ops.prepared(t, None, table=True, backend=self.backend).table for t in (p, z)]
                phi_p, phi_z = (self._phi_of(t, table=True).table for t in tables)
            if not ops.fused(self.backend, x):  # whose kernel reads half precision as float32
                p, z = at_least_float32(p), at_least_float32(z)
            queries, attended = [(q,) for q, _ in pairs.ordered], [(t,) for _, t in pairs.ordered]
            rows, stats = ops.align(
                as_heads(p, count, queries),
                as_heads(z, count, attended),
                as_heads(phi_p, count, queries),
                as_heads(phi_z, count, attended),
                self._offset(x),
                **self._range(),
                weight=0.5,
                beta=self.beta,
                backend=self.backend,
            )
            self.last_stats = named(stats)
            given = by_name(predictions=predictions, projections=projections)
            return finite(rows.mean(dim=1).sum() * (2 / len(queries)), **given)

    def _direction(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Stats]:
        if ops.fused(self.backend, prediction):  # whose kernel reads half precision as float32
            phi = Prepared(None, None, None, None, None)
            if self.adaptive is not None:
                rows = ops.prepared(prediction, target, table=True, backend=self.backend)
                phi = self._phi_of(rows.table, halves=True)
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
