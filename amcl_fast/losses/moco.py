"""MoCo's loss against a queue, with InfoNCE among its constant temperatures."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..distributed import world
from ..operator_settings import Negatives
from ..ops.backends import BackendName
from ..rows import Prepared, at_least_float32
from ..temperature import AdaptiveTemperature, Temperature, cosine_temperature
from .base import full_precision
from .contrast import Contrast, of_anchors
from .inputs import finite, heads_first, queue_rows
from .statistics import merged
from .views import Views, as_heads, by_name, check_whole, joined, view_pairs, views_first


class MoCoLoss(Contrast):
    """MoCo: the negatives of queries and keys are a queue; the mean of both directions q→k and k→q.

    k and the queue carry no gradient, but φ learns from both. Adaptive temperature: AMCL, Eq. 2.1 (and 2.4 with
    `include_positive`) as in the authors' released code. Constant temperature: MoCo's InfoNCE is
    `MoCoLoss(0.1, negatives="softmax", include_positive=True)`, made symmetric.

    Where torch.distributed has several processes, all of them call the loss together: a `PerplexityTemperature` has its
    mean over the anchors of them all. With the others a call is a process's own.

    Args: as `SimCLRLoss`, and what is said there of the defaults holds here.
    """

    def __init__(
        self,
        temperature: Temperature,
        *,
        negatives: Negatives = "topk_mean",
        top_k: int | None = 100,
        beta: float = 1e-4,
        include_positive: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__(temperature, negatives, top_k, beta, include_positive, backend)

    @classmethod
    def recommended(cls, dim: int, *, backend: BackendName = "auto") -> Self:
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
    def released(cls, dim: int, *, backend: BackendName = "auto") -> Self:
        """AMCL as its authors released it: the class's defaults. Its τ all go to τ_min within the first steps.

        Args: as `recommended`.
        """
        return cls(AdaptiveTemperature(dim), backend=backend)

    if TYPE_CHECKING:  # a call of nn.Module is untyped

        def __call__(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor: ...

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
                table=self._learns,
                halves="raw",
                backend=self.backend,
            )
            phi = self._phi_of(rows.table, product_dtype, halves=True)
            candidates, phi_candidates = self._candidates(keys, x, product_dtype)
            assert rows.product is not None
            call = (rows.product, candidates, None, phi.table)
            (anchored,) = self._anchored([call], x.shape[0], world()[1] > 1, [1])
            weight = 1 / (2 * x.shape[1])
            loss, *stats = self._evaluate(rows, phi, candidates, phi_candidates, weight, anchored=anchored)
            self.last_stats = self._named(*stats)
            return finite(loss, q=q, k=k, queue=queue)

    def of_views(self, queries: Views, keys: Views, queue: Tensor, targets: Sequence[int] | None = None) -> Tensor:
        """Loss of V ≥ 2 views: the mean, over the pairs of a view and a target that it attends to, of a call's loss.

        A call with the queries of the one and the keys of the other, that is. Each view meets the queue once, however
        many pairs it is in. With two views it is the loss of a call with both.

        Args:
            queries: of the V views, (N, C, d) or (N, d) each, a sequence of them or one tensor.
            keys: the same of the targets alone, in the order of `targets`.
            queue: as in a call.
            targets: places of the views that the others attend to; None: all.

        Raises:
            ValueError, TypeError: as a call; fewer than two views; targets that are no views, or not each once; keys
                of another number of views.
        """
        pairs = view_pairs("queries", queries, targets)
        check_whole("keys", keys)
        attended = [*range(len(queries))] if targets is None else [*targets]
        if not isinstance(keys, Sequence | Tensor) or len(keys) != len(attended):
            got = len(keys) if isinstance(keys, Sequence | Tensor) else type(keys).__name__
            raise ValueError(f"keys must be those of the {len(attended)} targets, one tensor each, got {got}")
        of_queries, of_keys = views_first(queries=queries, keys=keys)
        count, x = len(of_queries), of_queries[0]
        # Negatives are of the queue, so one image will do: of a process whose share of the batch that is.
        self._note_shape("queries[0]", x.shape[1], x, stacklevel=3, fewest=1)
        if pairs.are_two_views:
            k1, k2 = (keys[attended.index(place)] for place in (0, 1))
            q = queries.flatten(0, 1) if isinstance(queries, Tensor) else torch.cat([*queries])
            shape, loss = self.last_shape, self(q, torch.cat([k2, k1]), queue)
            self.last_shape = shape  # of a view, where the call saw both in one
            return loss
        self._check_width(x.shape[-1], "the projection width d", "queries[0]", queries[0])
        held = queue_rows(queue, queries[0], x)
        product_dtype = self._product_dtype(queries[0])
        # Places in a table of all queries, then all keys.
        ordered = [(q, count + attended.index(t)) for q, t in pairs.ordered]
        with full_precision(x):
            fixed = keys.detach() if isinstance(keys, Tensor) else [key.detach() for key in keys]
            raw = joined((queries, of_queries), (fixed, [key.detach() for key in of_keys]))
            needed = self._learns
            rows = ops.prepared(raw, None, product=product_dtype, table=needed, backend=self.backend)
            phi = self._phi_of(rows.table, product_dtype, table=True)
            rows = rows._replace(first=raw if ops.fused(self.backend, raw) else at_least_float32(raw))
            candidates = self._candidates(held, x, product_dtype)
            loss = self._of_pairs(rows, phi, *candidates, count + len(of_keys), ordered) / x.shape[1]
            return finite(loss, **by_name(queries=queries, keys=keys), queue=queue)

    def _candidates(self, keys: Tensor, like: Tensor, product: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The queue (C, K, d) as products read it, and its φ; `like` is q as (C, N, d)."""
        of_phi = at_least_float32(keys) if self._learns and not self._by_anchor else None
        phi_candidates = self._phi_of_candidates(of_phi, product)
        # Whole rows for what reads them one by one, transposed and rounded in one pass.
        if ops.fused(self.backend, like):
            return keys.to(product, memory_format=torch.contiguous_format).contiguous(), phi_candidates
        return at_least_float32(keys), phi_candidates

    def _of_pairs(
        self,
        rows: Prepared,
        phi: Prepared,
        candidates: Tensor,
        phi_candidates: Tensor | None,
        count: int,
        pairs: list[tuple[int, int]],
    ) -> Tensor:
        """N times the loss of pairs of views, of which `rows`, not normalised as `first`, and `phi` hold `count`."""
        assert rows.first is not None and rows.product is not None
        queries, attended = [(q,) for q, _ in pairs], [(t,) for _, t in pairs]
        x, y = as_heads(rows.first, count, queries), as_heads(rows.first.detach(), count, attended)
        if self._by_anchor:
            positive, of_positives = self._away(x, y)
        else:
            positive, of_positives = ops.align(
                x,
                y,
                as_heads(phi.table, count, queries),
                as_heads(phi.table, count, attended),
                self._offset(rows.first),
                **self._range(),
                weight=1.0,
                beta=self._beta,
                backend=self.backend,
            )
        # One call for the views that are in as many pairs as one another: its statistics count them alike.
        used = Counter(place for pair in pairs for place in pair)
        times = sorted({*used.values()})
        groups = [sorted(place for place in used if used[place] == n) for n in times]
        calls = [
            tuple(
                table if table is None or len(group) == count else as_heads(table, count, [group])
                for table in (rows.product, phi.product, phi.table)
            )
            for group in groups
        ]
        anchored = self._anchored(
            [(anchors, candidates, None, tau) for anchors, _, tau in calls],  # type: ignore[misc]
            len(rows.first),
            world()[1] > 1,
            times,
        )
        negatives: dict[int, Tensor] = {}
        taus: dict[int, Tensor] = {}
        found, sizes = [], []
        for n, group, (anchors, phi_anchors, _), of_group in zip(times, groups, calls, anchored, strict=True):
            assert anchors is not None
            if of_group is not None:
                negative, of_negatives = self._negatives(anchors, candidates, None, of_group, None)
                taus |= zip(group, of_group.tau.chunk(len(group), dim=1), strict=True)
            else:
                negative, of_negatives = ops.contrast(
                    anchors,
                    candidates,
                    phi_anchors,
                    phi_candidates,
                    self._offset(rows.first),
                    None,
                    **self._range(),
                    negatives=self.negatives,
                    top_k=self.top_k,
                    beta=self._beta,
                    extra=None,  # every pair has its own
                    backend=self.backend,
                )
            negatives |= zip(group, negative.chunk(len(group), dim=1), strict=True)
            found.append(of_negatives)
            sizes.append(n * len(group))
        of_negatives = merged(found, sizes)
        if self._by_anchor:
            of_positives |= of_anchors(of_negatives)
        self.last_stats = self._named(of_positives, of_negatives)
        loss = torch.zeros((), dtype=positive.dtype, device=positive.device)
        counted, dim = self._counted(candidates, None), candidates.shape[2]
        for side in (0, 1):
            of_side, tau = (
                torch.cat([of[pair[side]] for pair in pairs], dim=1).view_as(positive) if of else None
                for of in (negatives, taus)
            )
            assert of_side is not None
            term = positive + of_side if tau is None else self._terms(positive, of_side, tau, counted, dim)
            # −log(e^p / (e^p + e^n)) = log(1 + e^(n − p)) of a positive's logit p and the negatives' n.
            loss = loss + (F.softplus(term, threshold=40) if self.include_positive else term).sum()
        return loss / (2 * len(pairs))
