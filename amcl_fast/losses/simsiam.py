"""SimSiam's loss."""

from typing import Self

from torch import Tensor

from .. import ops
from ..reference import Stats
from ..rows import Prepared, at_least_float32, unit
from ..temperature import AdaptiveTemperature, cosine_temperature
from .base import Loss, full_precision
from .inputs import finite, heads_first, number
from .statistics import merged, named


class SimSiamLoss(Loss):
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
        self.beta = number("beta", beta)

    @classmethod
    def recommended(cls, dim: int, *, backend: str = "auto") -> Self:
        """AMCL whose temperatures stay inside their range: the exact likelihood, β = 1, and τ around 1/d.

        −s/(2τ) + β·Ω(τ) is least at τ = (2β − s)/(β·d). It is not shown to beat the baseline, `SimSiamLoss()`: over
        three seeds of a short study both stay within a few points of the untrained encoder (docs/frameworks.md).

        Args:
            dim: projection width d, of every head.
            backend: as the class's.
        """
        return cls(cosine_temperature(dim, 0.256, 2.56, per_width=True), beta=1.0, backend=backend)

    @classmethod
    def released(cls, dim: int, *, backend: str = "auto") -> Self:
        """AMCL as its authors released it: β = 1e-4. Its τ all go to τ_min within the first steps.

        Args: as `recommended`.
        """
        return cls(AdaptiveTemperature(dim), backend=backend)

    def forward(self, p1: Tensor, z2: Tensor, p2: Tensor, z1: Tensor) -> Tensor:
        """Loss of predictions p1, p2 and projections z1, z2 of the two views, (N, C, d) or (N, d)."""
        p1_, z2_, p2_, z1_ = heads_first(p1=p1, z2=z2, p2=p2, z1=z1)
        self._note_shape("p1", p1_.shape[1], p1_)
        self._check_width(p1_.shape[-1], "the projection width d", "p1", p1)
        with full_precision(p1_):
            first, of_first = self._direction(p1_, z2_.detach())
            second, of_second = self._direction(p2_, z1_.detach())
            self.last_stats = named(merged(of_first, of_second))
            return finite((first + second).mean(dim=1).sum(), p1=p1, z2=z2, p2=p2, z1=z1)

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
