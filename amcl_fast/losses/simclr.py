"""SimCLR's loss, with NT-Xent and DCL among its constant temperatures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from .. import ops
from ..distributed import gather_rows, row_counts, world
from ..operator_settings import Negatives
from ..ops.backends import BackendName
from ..rows import Prepared, at_least_float32
from ..temperature import AdaptiveTemperature, Temperature, cosine_temperature
from .base import full_precision
from .contrast import Contrast
from .inputs import finite, heads_first
from .statistics import merged
from .views import Views, as_heads, by_name, joined, view_pairs, views_first


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
        temperature: constant τ, from 1e-18 to 3.4e38, an `AdaptiveTemperature` of dim d, a `PerplexityTemperature`, or
            a `LearnedTemperature`, not with `topk_mean`.
        negatives: `topk_mean` (the released code's form), `topk_softmax` (κ = 1 is Eq. 2.1 exactly) or
            `softmax` (all negatives).
        top_k: κ, number of hardest negatives per anchor and head; all if fewer exist. Ignored with `softmax`.
        beta: β ≥ 0, weight of the adaptive temperature's regulariser. Where an anchor has one τ it is the same on both
            sides of a log-sum-exp and cancels: then β counts with `topk_mean` alone.
        include_positive: add the positive to the log-sum-exp (InfoNCE); not with `topk_mean`, nor with a temperature of
            `objective="dro"`.
        gather: take the candidates from all processes of torch.distributed. The mean of what the processes
            return is the loss of the global batch, and gradients are right under DDP, which averages them. Batches
            may differ in size; the host waits for the sizes.
        backend: `auto`, `triton`, `native` or `reference`.
    """

    def __init__(
        self,
        temperature: Temperature,
        *,
        negatives: Negatives = "topk_mean",
        top_k: int | None = 100,
        beta: float = 1e-4,
        include_positive: bool = False,
        gather: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__(temperature, negatives, top_k, beta, include_positive, backend)
        self.gather = bool(gather)

    @classmethod
    def recommended(cls, dim: int, *, gather: bool = False, backend: BackendName = "auto") -> Self:
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
    def released(cls, dim: int, *, gather: bool = False, backend: BackendName = "auto") -> Self:
        """AMCL as its authors released it: the class's defaults. Its τ all go to τ_min within the first steps.

        Args: as `recommended`.
        """
        return cls(AdaptiveTemperature(dim), gather=gather, backend=backend)

    if TYPE_CHECKING:  # a call of nn.Module is untyped

        def __call__(self, z1: Tensor, z2: Tensor) -> Tensor: ...

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
                table=self._learns or processes > 1,
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
                phi_candidates = self._phi_of_candidates(gathered, product_dtype)
            # The mean over all anchors of the processes is the mean of what they return.
            assert candidates is not None
            weight = processes / (2 * sum(counts))
            assert rows.product is not None
            call = (rows.product, candidates, rows.skip, phi.table)
            (anchored,) = self._anchored([call], x.shape[0], processes > 1, [1])
            loss, *stats = self._evaluate(rows, phi, candidates, phi_candidates, weight, anchored=anchored)
            self.last_stats = self._named(*stats)
            return finite(loss, z1=z1, z2=z2)

    def of_views(self, views: Views, targets: Sequence[int] | None = None) -> Tensor:
        """Loss of V ≥ 2 views: the mean, over the pairs of a view and a target that it attends to, of the anchors'.

        The anchors of a pair are the view's rows, their positives the target's, their negatives the other images' rows
        of these two: other views of an image are never its negatives. With two views it is the loss of a call.

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
        count, x = len(each), each[0]
        rank, processes = world() if self.gather else (0, 1)
        counts = row_counts(x) if processes > 1 else [x.shape[1]]
        total, first = sum(counts), sum(counts[:rank])
        self._note_shape("views[0]", total, x, stacklevel=3)
        self._check_width(x.shape[-1], "the projection width d", "views[0]", views[0])
        product_dtype = self._product_dtype(views[0])
        with full_precision(x):
            raw = joined((views, each))
            needed = self._learns or processes > 1
            rows = ops.prepared(raw, None, product=product_dtype, table=needed, backend=self.backend)
            phi = self._phi_of(rows.table, product_dtype, table=True)
            candidates, phi_candidates = rows.product, phi.product
            assert candidates is not None
            if processes > 1:
                assert rows.table is not None
                everyone = _of_all_processes(rows.table, count, counts)
                candidates, phi_candidates = (
                    everyone.to(product_dtype),
                    self._phi_of_candidates(everyone, product_dtype),
                )
            own = torch.arange(first, first + x.shape[1], device=x.device)
            # Of all views, where a call has those of two.
            rows = rows._replace(
                first=raw if ops.fused(self.backend, raw) else at_least_float32(raw),
                skip=torch.stack([own, own + total], dim=1),
            )
            weight = processes / (total * sum(pairs.sizes))
            one = processes == 1  # table, of anchors and candidates
            calls = [
                self._of_pairs(rows, phi, candidates, phi_candidates, count, of, times == 2, one)
                for of, times in pairs.groups
            ]
            anchored = self._anchored(
                [(of.rows.product, of.candidates, of.rows.skip, of.phi.table) for of in calls],  # type: ignore[misc]
                x.shape[0],
                processes > 1,
                [1 for _ in calls],
            )
            losses, of_positives, of_negatives = zip(
                *(
                    self._evaluate(
                        of.rows, of.phi, of.candidates, of.phi_candidates, weight, mutual=times == 2, anchored=tau
                    )
                    for of, tau, (_, times) in zip(calls, anchored, pairs.groups, strict=True)
                ),
                strict=True,
            )
            self.last_stats = self._named(merged(of_positives, pairs.sizes), merged(of_negatives, pairs.sizes))
            return finite(torch.stack(losses).sum(), **by_name(views=views))

    def _of_pairs(
        self,
        rows: Prepared,
        phi: Prepared,
        candidates: Tensor,
        phi_candidates: Tensor | None,
        count: int,
        of: list[tuple[int, int]],
        mutual: bool,
        one: bool,
    ) -> "_Call":
        """What `_evaluate` takes of pairs of views, with the pairs as heads.

        Args:
            rows, phi: of all views: the anchors' tables, and in `rows` the rows not normalised as `first` and what an
                anchor skips of the candidates of its pair.
            candidates, phi_candidates: of all processes.
            count: number of views.
            of: pairs.
            mutual: whether the rows of both views of a pair are its anchors; else those of its first view.
            one: whether the candidates are of this process alone: then those of mutual pairs are the anchors' own
                table, for which there is one gradient.
        """
        queries, attended = [(q,) for q, _ in of], [(t,) for _, t in of]
        whole, phi_whole = as_heads(candidates, count, of), as_heads(phi_candidates, count, of)
        anchors: Tensor | None = whole
        phi_anchors = phi_whole
        if not (one and mutual):
            anchors, phi_anchors = (as_heads(t, count, of if mutual else queries) for t in (rows.product, phi.product))
        x, y = (as_heads(rows.first, count, views) for views in (queries, attended))
        phi_x, phi_y = (as_heads(phi.table, count, views) for views in (queries, attended))
        skip = rows.skip if rows.skip is None or not mutual else torch.cat([rows.skip, rows.skip])
        tau = as_heads(phi.table, count, of if mutual else queries) if self._by_anchor else None
        of_anchors = Prepared(None, anchors, x, y, skip), Prepared(tau, phi_anchors, phi_x, phi_y, None)
        return _Call(*of_anchors, whole, phi_whole)


class _Call(NamedTuple):
    """Rows and φ of anchors, and both of candidates."""

    rows: Prepared
    phi: Prepared
    candidates: Tensor
    phi_candidates: Tensor | None


def _of_all_processes(table: Tensor, views: int, counts: list[int]) -> Tensor:
    """Rows of V views (C, V·n, d) of all processes, which hold `counts` images each: (C, V·N, d)."""
    own = table.unflatten(1, (views, table.shape[1] // views))
    everyone = gather_rows(own.transpose(1, 2).flatten(2), counts)
    return everyone.unflatten(2, (views, -1)).transpose(1, 2).flatten(1, 2)
