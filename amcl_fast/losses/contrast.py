"""What SimCLR and MoCo share: which negatives count, and the two terms of their loss."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import operator_settings, ops
from ..operator_settings import Negatives
from ..ops.backends import BackendName
from ..reference import Chosen, Stats, omega
from ..rows import Prepared
from ..temperature import LearnedTemperature, PerplexityTemperature, Temperature
from .base import Loss
from .inputs import number
from .statistics import named


class Anchored(NamedTuple):
    """Temperatures of the anchors of one call of the operator.

    Attributes:
        tau: (C, A), float32 or better.
        chosen: the hardest negatives, if they are known.
        at_bound: 0-dim, the share of them whose τ lay at an end of its range before it was pinned; None: as it is now.
    """

    tau: Tensor
    chosen: Chosen | None
    at_bound: Tensor | None


class Contrast(Loss):
    """The settings of the contrast, shared by SimCLR and MoCo."""

    def __init__(
        self,
        temperature: Temperature,
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
        self.top_k = None if negatives == "softmax" or top_k is None else int(top_k)
        if self.adaptive is not None and self.adaptive.objective == "dro":
            self._check_robust(self.adaptive.rho, include_positive)
        self.beta = number("beta", beta)
        self.include_positive = bool(include_positive)

    def _check_robust(self, rho: float | None, include_positive: bool) -> None:
        """That the loss is one of which the robust form is known, and has a best τ."""
        if self.negatives == "topk_mean":
            raise ValueError(
                "negatives must be 'topk_softmax' or 'softmax' with objective='dro', which is about a log-sum-exp, got "
                "'topk_mean'"
            )
        if include_positive:
            raise ValueError(
                "include_positive must be False with objective='dro', whose negatives are compared with the positive, "
                f"got {include_positive!r}"
            )
        assert rho is not None
        if self.top_k is not None and rho >= math.log(self.top_k):
            raise ValueError(
                f"temperature.rho must be below log(top_k) = {math.log(self.top_k):.3g}, or every τ falls to tau_min, "
                f"got {rho}"
            )

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
        anchored: Anchored | None = None,
    ) -> tuple[Tensor, Stats, Stats]:
        """`weight` times the sum of the positive and negative terms of all anchors and heads; statistics of both.

        `rows` are 2N anchors, the x of every pair, then its y, normalised. Their halves are the N pairs not normalised:
        `align` does it, and doing it twice would square the gradient of a row of zeros. Similarity and r are symmetric,
        so each pair is evaluated once for both of its anchors. `phi` is φ of the anchors. Where pairs are not `mutual`
        the anchors are the x of every pair alone. `anchored`: where anchors have one τ each.
        """
        if anchored is not None:
            return self._evaluate_anchored(rows, candidates, weight, anchored, mutual=mutual)
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

    def _evaluate_anchored(
        self, rows: Prepared, candidates: Tensor, weight: float, anchored: Anchored, *, mutual: bool
    ) -> tuple[Tensor, Stats, Stats]:
        """`_evaluate` where anchors have one τ each."""
        assert rows.product is not None and rows.first is not None and rows.second is not None
        away, of_positives = self._away(rows.first, rows.second)
        if mutual:
            away = torch.cat([away, away], dim=1)
        negative, of_negatives = self._negatives(rows.product, candidates, rows.skip, anchored, away)
        terms = self._terms(away, negative, anchored.tau, self._counted(candidates, rows.skip), rows.product.shape[2])
        return terms.sum() * weight, of_positives | of_anchors(of_negatives), of_negatives

    def _away(self, first: Tensor, second: Tensor) -> tuple[Tensor, Stats]:
        """−s (C, N) of N pairs of rows, not normalised."""
        alone = {"tau_min": 1.0, "tau_max": 1.0, "weight": 1.0, "beta": 0.0}
        return ops.align(first, second, None, None, None, **alone, backend=self.backend)

    def _negatives(
        self, anchors: Tensor, candidates: Tensor, skip: Tensor | None, anchored: Anchored, away: Tensor | None
    ) -> tuple[Tensor, Stats]:
        """Negative terms (C, A) and their statistics; with `away`, −s of the positives, these join them if they may."""
        negative, stats = ops.contrast(
            anchors,
            candidates,
            None,
            None,
            None,
            skip,
            **self._range(),
            negatives=self.negatives,
            top_k=self.top_k,
            beta=0.0,
            extra=None if away is None or not self.include_positive else -away / anchored.tau,
            tau=anchored.tau,
            chosen=anchored.chosen,
            backend=self.backend,
        )
        if anchored.at_bound is not None:
            stats["tau_at_bound"] = anchored.at_bound.to(stats["tau_mean"].dtype)
        return negative, stats

    def _counted(self, candidates: Tensor, skip: Tensor | None) -> int:
        """|T|."""
        available = candidates.shape[1] - (0 if skip is None else skip.shape[1])
        return available if self.top_k is None else min(self.top_k, available)

    def _terms(self, away: Tensor, negative: Tensor, tau: Tensor, count: int, dim: int) -> Tensor:
        """What each anchor (C, A) adds to the loss, of −s of its positive, its negative term, its τ, and |T|.

        Raises:
            ValueError: a ρ for which there are too few negatives.
        """
        adaptive = self.adaptive
        if adaptive is not None and adaptive.objective == "dro":
            assert adaptive.rho is not None
            if adaptive.rho >= math.log(count):
                raise ValueError(
                    f"temperature.rho must be below log |T| = {math.log(count):.3g} of the {count} negatives that "
                    f"count, or every τ falls to tau_min, got {adaptive.rho}"
                )
            return away + tau * (negative + (adaptive.rho - math.log(count)))
        terms = away / tau + negative
        if adaptive is not None and self.negatives == "topk_mean":  # in the others Ω(τ) of both sides is the same
            terms = terms + self.beta * (omega(tau, dim) - count * (tau.log() + tau.reciprocal()))
        return terms

    def _anchored(
        self,
        calls: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
        heads: int,
        shared: bool,
        times: list[int],
    ) -> list[Anchored | None]:
        """The temperatures of the anchors of several calls of the operator; None where pairs have their own.

        Args:
            calls: anchors (C·P, A, d), candidates, skip, and what `_phi_of` has of τ, (C·P, A, 1), of each.
            heads: C; a call may have several for each, P.
            shared: whether other processes have anchors of the same loss.
            times: how often the anchors of each call count.
        """
        if not self._by_anchor:
            return [None for _ in calls]
        temperature = self.temperature
        if isinstance(temperature, PerplexityTemperature):
            raw, chosen = zip(
                *(
                    ops.calibrate(
                        anchors,
                        candidates,
                        skip,
                        **self._range(),
                        negatives=self.negatives,
                        top_k=self.top_k,
                        perplexity=temperature.perplexity,
                        backend=self.backend,
                    )
                    for anchors, candidates, skip, _ in calls
                ),
                strict=True,
            )
            at_bound = map(temperature.share_at_bound, raw)
            taus = _pinned(raw, temperature, heads, shared, times)
            return [Anchored(*of) for of in zip(taus, chosen, at_bound, strict=True)]
        return [Anchored(tau.squeeze(-1), None, None) for *_, tau in calls if tau is not None]


def of_anchors(negatives: Stats) -> Stats:
    """Of statistics those of τ, which positives have from their anchors."""
    return {name: value for name, value in negatives.items() if name.startswith("tau")}


def _pinned(
    taus: Sequence[Tensor], temperature: PerplexityTemperature, heads: int, shared: bool, times: list[int]
) -> list[Tensor]:
    """τ of τ⁰ (C·P, A): the mean of 1/τ is that of the temperature, over all anchors of a head and all processes."""
    by_head = [tau.unflatten(0, (heads, -1)).flatten(1) for tau in taus]
    inverse = torch.stack([of.reciprocal().sum(1) * n for of, n in zip(by_head, times, strict=True)]).sum(0)
    count = sum(of.shape[1] * n for of, n in zip(by_head, times, strict=True))
    if shared:
        both = torch.cat([inverse, inverse.new_full((1,), count)])
        dist.all_reduce(both)
        inverse = both[:-1] / both[-1]
    else:
        inverse = inverse / count
    return [temperature.pinned(of, inverse).view_as(tau) for of, tau in zip(by_head, taus, strict=True)]
