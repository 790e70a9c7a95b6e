"""SimCLR's loss, with NT-Xent and DCL among its constant temperatures."""

from typing import Self

from torch import Tensor

from .. import ops
from ..distributed import gather_rows, row_counts, world
from ..temperature import AdaptiveTemperature, cosine_temperature
from .base import full_precision
from .contrast import Contrast
from .inputs import finite, heads_first


class SimCLRLoss(Contrast):
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
            cosine_temperature(dim, 0.1, 1.0, offset=0.5),
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
        x, y = heads_first(z1=z1, z2=z2)
        n = x.shape[1]
        rank, processes = world() if self.gather else (0, 1)
        counts = row_counts(x) if processes > 1 else [n]
        self._note_shape("z1", sum(counts), x)
        self._check_width(x.shape[-1], "the projection width d", "z1", z1)
        product_dtype = self._product_dtype(z1)
        with full_precision(x):
            rows = ops.prepared(
                x,
                y,
                product=product_dtype,
                table=self.adaptive is not None or processes > 1,
                halves="raw",
                skip=2 * sum(counts[:rank]),
                backend=self.backend,
            )
            phi = self._phi_of(rows.table, product_dtype, halves=True)
            # One table: what comes back to its rows as anchors and as candidates is one gradient.
            candidates, phi_candidates = rows.product, phi.product
            if processes > 1:
                assert rows.table is not None
                gathered = gather_rows(rows.table, [2 * count for count in counts])
                candidates = gathered.to(product_dtype)
                phi_candidates = self._phi_of(gathered, product_dtype).product
            # The mean over all anchors of the processes is the mean of what they return.
            assert candidates is not None
            loss = self._evaluate(rows, phi, candidates, phi_candidates, processes / (2 * sum(counts)))
            return finite(loss, z1=z1, z2=z2)
