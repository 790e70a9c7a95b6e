"""Barlow Twins' loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from .. import ops
from ..distributed import gather_rows, row_counts, world
from ..ops.backends import BackendName
from ..rows import at_least_float32, bounded, standardised
from ..temperature import AdaptiveTemperature, cosine_temperature
from .base import Loss, full_precision
from .inputs import finite, heads_first, number
from .statistics import merged, named
from .views import Views, as_heads, by_name, view_pairs, views_first


class BarlowTwinsLoss(Loss):
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

    _no_scalar = "the diagonal would reach 𝒞/τ = 1 by a learned scalar in place of correlated views"

    def __init__(
        self,
        temperature: float | AdaptiveTemperature = 1.0,
        *,
        lambd: float = 5e-3,
        beta: float = 1e-6,
        gather: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__(temperature, backend)
        # Slopes hold 1/τ³, which must be a number of float32.
        if (smallest := self._range()["tau_min"]) < 1e-12:
            raise ValueError(f"temperature must be at least 1e-12 for Barlow Twins, got {smallest}")
        self.lambd = number("lambd", lambd)
        self.beta = number("beta", beta)
        self.gather = bool(gather)

    @classmethod
    def recommended(cls, dim: int, *, gather: bool = False, backend: BackendName = "auto") -> Self:
        """AMCL whose temperatures stay inside their range: τ from 0.8 to 1.25 by a bounded score.

        No adaptive setting was found that beats the baseline, `BarlowTwinsLoss()` (docs/frameworks.md): this is the
        one to start from where temperatures are the subject, and the baseline where they are not.

        Args:
            dim: global batch size N, the width of what φ reads here.
            gather, backend: as the class's.
        """
        return cls(cosine_temperature(dim, 0.8, 1.25), gather=gather, backend=backend)

    @classmethod
    def released(cls, dim: int, *, gather: bool = False, backend: BackendName = "auto") -> Self:
        """AMCL as its authors released it. At their size every τ starts at τ_min, and the loss near 1e13.

        Args: as `recommended`.
        """
        return cls(AdaptiveTemperature(dim), gather=gather, backend=backend)

    if TYPE_CHECKING:  # a call of nn.Module is untyped

        def __call__(self, z1: Tensor, z2: Tensor) -> Tensor: ...

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of projections z1, z2 (N, C, d) or (N, d) of two views; N ≥ 2 over all processes."""
        x, y = heads_first(z1=z1, z2=z2)
        if self.gather and world()[1] > 1:
            counts = row_counts(x)
            x, y = gather_rows(x, counts), gather_rows(y, counts)
        self._note_shape("z1", x.shape[1], x)
        self._check_width(x.shape[1], "the global batch size N", "z1", z1)
        product_dtype = self._product_dtype(z1)
        with full_precision(x):
            # Channel vectors, (C, d, N), each in one piece: all that follows reads and writes along the batch.
            # φ reads them too: from a size of 1e12 on, its score does not change with it, or τ is at a bound.
            x, y = (bounded(at_least_float32(z).mT.contiguous()) for z in (x, y))
            losses, on, off = ops.decorrelate(
                standardised(x).to(product_dtype),
                standardised(y).to(product_dtype),
                self._phi_of(x, product_dtype).product,
                self._phi_of(y, product_dtype).product,
                self._offset(x),
                **self._range(),
                lambd=self.lambd,
                beta=self.beta,
                backend=self.backend,
            )
            self.last_stats = named(on, off)
            return finite(losses.sum(), z1=z1, z2=z2)

    def of_views(self, views: Views, targets: Sequence[int] | None = None) -> Tensor:
        """Loss of V ≥ 2 views: the mean, over the pairs of a view and a target that it attends to, of a call's loss.

        It has no direction, so a pair of two targets, which counts twice, is evaluated once.

        Args:
            views: projections (N, C, d) or (N, d) each, a sequence of them or one tensor.
            targets: places of the views that the others attend to; None: all.

        Raises:
            ValueError, TypeError: as a call; fewer than two views; targets that are no views, or not each once.
        """
        pairs = view_pairs("views", views, targets)
        if pairs.are_two_views:
            return self(*views)
        (each,) = views_first(views=views)
        count, channels = len(each), each[0].shape[2]
        if self.gather and world()[1] > 1:
            # Beside one another, so that the rows of an image travel together.
            gathered = gather_rows(torch.cat(each, dim=2), row_counts(each[0]))
            each = list(gathered.split(channels, dim=2))
        n = each[0].shape[1]
        self._note_shape("views[0]", n, each[0], stacklevel=3)
        self._check_width(n, "the global batch size N", "views[0]", views[0])
        product_dtype = self._product_dtype(views[0])
        with full_precision(each[0]):
            # Channel vectors of all views, (C, V·d, N), as in a call.
            x = bounded(at_least_float32(torch.cat([z.mT for z in each], dim=1)))
            standard = standardised(x).to(product_dtype)
            phi = self._phi_of(x, product_dtype).product
            losses, of_on, of_off = [], [], []
            for of, times in pairs.groups:
                first, second = [(q,) for q, _ in of], [(t,) for _, t in of]
                of_heads, on, off = ops.decorrelate(
                    as_heads(standard, count, first),
                    as_heads(standard, count, second),
                    as_heads(phi, count, first),
                    as_heads(phi, count, second),
                    self._offset(x),
                    **self._range(),
                    lambd=self.lambd,
                    beta=self.beta,
                    backend=self.backend,
                )
                losses.append(of_heads.sum() * (times / sum(pairs.sizes)))
                of_on.append(on)
                of_off.append(off)
            self.last_stats = named(merged(of_on, pairs.sizes), merged(of_off, pairs.sizes))
            return finite(torch.stack(losses).sum(), **by_name(views=views))
