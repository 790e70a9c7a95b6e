"""MoCo's loss against a queue, with InfoNCE among its constant temperatures."""

from typing import Self

import torch
from torch import Tensor

from .. import ops
from ..rows import at_least_float32
from ..temperature import AdaptiveTemperature, cosine_temperature
from .base import full_precision
from .contrast import Contrast
from .inputs import finite, heads_first, queue_rows


class MoCoLoss(Contrast):
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
        return cls(cosine_temperature(dim, 0.1, 1.0), negatives="softmax", include_positive=True, backend=backend)

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
        x, y = heads_first(q=q, k=k)
        self._note_shape("q", x.shape[1], x)
        self._check_width(x.shape[-1], "the projection width d", "q", q)
        keys = queue_rows(queue, q, x)
        product_dtype = self._product_dtype(q)
        with full_precision(x):
            rows = ops.prepared(
                x,
                y.detach(),
                product=product_dtype,
                table=self.adaptive is not None,
                halves="raw",
                backend=self.backend,
            )
            phi = self._phi_of(rows.table, product_dtype, halves=True)
            of_phi = None if self.adaptive is None else at_least_float32(keys)
            phi_candidates = self._phi_of(of_phi, product_dtype).product
            # Whole rows for what reads them one by one, transposed and rounded in one pass.
            if ops.fused(self.backend, x):
                candidates = keys.to(product_dtype, memory_format=torch.contiguous_format).contiguous()
            else:
                candidates = at_least_float32(keys)
            loss = self._evaluate(rows, phi, candidates, phi_candidates, 1 / (2 * x.shape[1]))
            return finite(loss, q=q, k=k, queue=queue)
