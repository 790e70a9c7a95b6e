"""What SimCLR and MoCo share: which negatives count, and the two terms of their loss."""

import torch
from torch import Tensor

from .. import operator_settings, ops
from ..operator_settings import Negatives
from ..ops.backends import BackendName
from ..reference import Stats
from ..rows import Prepared
from ..temperature import AdaptiveTemperature, LearnedTemperature
from .base import Loss
from .inputs import number
from .statistics import named


class Contrast(Loss):
    """The settings of the contrast, shared by SimCLR and MoCo."""

    def __init__(
        self,
        temperature: float | AdaptiveTemperature | LearnedTemperature,
        negatives: Negatives,
        top_k: int | None,
        beta: float,
        include_positive: bool,
        backend: BackendName,
    ) -> None:
        super().__init__(temperature, backend)
        operator_settings.selection(negatives, top_k)
        if include_positive and negatives == "topk_mean":
            raise ValueError(
                "include_positive must be False with negatives='topk_mean', which has no log-sum-exp, "
                f"got {include_positive!r}; negatives='topk_softmax' or 'softmax' have one"
            )
        if negatives == "topk_mean" and isinstance(temperature, LearnedTemperature):
            raise ValueError(
                "negatives must be 'topk_softmax' or 'softmax' with a LearnedTemperature, got 'topk_mean', which is "
                "proportional to 1/τ and would only carry τ to an end of its range"
            )
        self.negatives = negatives
        self.top_k = None if negatives == "softmax" else top_k
        self.beta = number("beta", beta)
        self.include_positive = bool(include_positive)

    @property
    def _beta(self) -> float:
        """β for an operator: one number for all pairs has no regulariser."""
        return 0.0 if self.adaptive is None else self.beta

    def _named(self, positives: Stats, negatives: Stats) -> Stats:
        """`last_stats`; one number has no spread, and its range is not that of the operators."""
        stats = named(positives, negatives)
        if stats and isinstance(self.temperature, LearnedTemperature):
            at_bound = self.temperature.at_bound
            for group in ("positive", "negative"):
                stats[f"tau_{group}_at_bound"] = at_bound.to(stats[f"tau_{group}_mean"].dtype)
                stats[f"tau_{group}_std"] = torch.zeros_like(stats[f"tau_{group}_mean"])
        return stats

    def _evaluate(
        self,
        rows: Prepared,
        phi: Prepared,
        candidates: Tensor,
        phi_candidates: Tensor | None,
        weight: float,
        *,
        mutual: bool = True,
    ) -> tuple[Tensor, Stats, Stats]:
        """`weight` times the sum of the positive and negative terms of all anchors and heads; statistics of both.

        `rows` are 2N anchors, the x of every pair, then its y, normalised. Their halves are the N pairs not normalised:
        `align` does it, and doing it twice would square the gradient of a row of zeros. Similarity and r are symmetric,
        so each pair is evaluated once for both of its anchors. `phi` is φ of the anchors. Where pairs are not `mutual`
        the anchors are the x of every pair alone.
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
            beta=self._beta,
            backend=self.backend,
        )
        # The positive's logit s/τ − β·Ω(τ) is the negated positive term.
        late = mutual and ops.fused(self.backend, anchors)
        of_anchors = None if late else torch.cat([positive, positive], dim=1) if mutual else positive
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
            beta=self._beta,
            extra=-of_anchors if self.include_positive and of_anchors is not None else None,
            backend=self.backend,
        )
        if of_anchors is None:
            joined = self.include_positive
            loss = ops.total(positive, negative, joined=joined, weight=weight, backend=self.backend)
        else:
            loss = (of_anchors + negative).sum() * weight
        return loss, of_positives, of_negatives
