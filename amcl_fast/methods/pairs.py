"""A look at the pairs that a loss forms, apart from training."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import of_perplexity
from ..rows import unit
from ..temperature import AdaptiveTemperature, PerplexityTemperature, Temperature

MOST_ANCHORS = 512
"""Anchors, channels or keys of a queue that are looked at, at most: more would only take memory."""

MOST_PRODUCTS = 1 << 25
"""Numbers, of anchors with a whole queue, that are in memory together, at most."""


class Pairs(NamedTuple):
    """Similarity and temperature of pairs of one batch, detached, float32.

    Attributes:
        positive_similarity, positive_tau: (C, n) of n anchors with their positives.
        negative_similarity, negative_tau: (C, n, m) of the same anchors with m negatives each.
        taken_similarity, taken_tau: (C, n, κ) with those negatives that the loss takes, the most similar ones; None:
            it takes none, or does not say which.
    """

    positive_similarity: Tensor
    positive_tau: Tensor
    negative_similarity: Tensor
    negative_tau: Tensor
    taken_similarity: Tensor | None = None
    taken_tau: Tensor | None = None


def normalised_rows(z: Tensor) -> Tensor:
    """Projections (n, C, d) as L2-normalised rows (C, n, d), float32 or better."""
    return unit((z if z.dtype == torch.float64 else z.float()).transpose(0, 1))


def pairs_of(
    x: Tensor,
    y: Tensor,
    temperature: Temperature,
    negative: Tensor,
    similar: tuple[Tensor, Tensor] | None = None,
    taken: int | None = None,
    pool: Tensor | None = None,
) -> Pairs:
    """Pairs of anchors and candidates, of which the first are the anchors' positives, in their order.

    Args:
        x: anchors (C, A, w), as φ reads them.
        y: candidates (C, B, w), as φ reads them; A ≤ B.
        temperature: of the pairs. One of a given perplexity has the mean that it says over the anchors looked at.
        negative: (A, B) bool, which candidates are an anchor's negatives; as many in every row.
        similar: anchors and candidates whose products are the similarities, if they are not x and y.
        taken: hardest negatives that the loss takes, all where there are fewer; None: it takes none.
        pool: (C, K, w), every anchor's negatives, of which the loss takes them, where y has but some; None: y's.
    """
    u, v = similar or (x, y)

    def negatives(values: Tensor) -> Tensor:
        return values[:, negative].unflatten(1, (x.shape[1], -1))

    with torch.autocast(x.device.type, enabled=False):
        similarity = u @ v.mT
        hard, places = (None, None) if taken is None else _taken(negatives(similarity), taken, x, pool)
        if isinstance(temperature, float):
            tau = torch.full_like(similarity, temperature)
        elif isinstance(temperature, PerplexityTemperature):
            assert hard is not None
            tau = _of_anchors(hard, temperature).unsqueeze(-1).expand(similarity.shape)
        else:
            tau = temperature(x, y)
        hard_tau = None if hard is None else negatives(tau)
        if hard_tau is not None and places is not None:
            if pool is None:
                hard_tau = hard_tau.gather(-1, places)
            elif isinstance(temperature, AdaptiveTemperature):
                hard_tau = _of_places(temperature, x, pool, places)
            else:  # the same with every candidate
                hard_tau = hard_tau[..., :1].expand(places.shape)

    def kept(values: Tensor) -> Tensor:
        return values.detach().float()

    def positives(values: Tensor) -> Tensor:
        return values.diagonal(dim1=1, dim2=2)

    found = [kept(side(values)) for side in (positives, negatives) for values in (similarity, tau)]
    return Pairs(*found, *(None if values is None else kept(values) for values in (hard, hard_tau)))


def perplexities(similarity: Tensor, tau: Tensor) -> Tensor:
    """Perplexity (C, n) of the softmax of s/τ over an anchor's negatives (C, n, m), as a share of m.

    1: all weigh the same; 1/m: one has all the weight. A regulariser of τ, which pairs have, is not in it.
    """
    logits = (similarity / tau).log_softmax(-1)
    return (-(logits.exp() * logits).sum(-1)).exp() / similarity.shape[-1]


def _taken(apart: Tensor, taken: int, x: Tensor, pool: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Similarities (C, A, κ) of the negatives that a loss takes, and their places in `pool` or in `apart` (C, A, m).

    No places: it takes all of `apart`.
    """
    if pool is not None:
        parts = [(some @ pool.mT).topk(min(taken, pool.shape[1]), dim=-1) for some in _some(x, pool.shape[1])]
        return torch.cat([part.values for part in parts], dim=1), torch.cat([part.indices for part in parts], dim=1)
    if taken >= apart.shape[-1]:
        return apart, None
    values, places = apart.topk(taken, dim=-1)
    return values, places


def _some(x: Tensor, others: int) -> tuple[Tensor, ...]:
    """Rows (C, A, w) in parts, each with no more products with so many others than memory should hold."""
    return x.split(max(1, MOST_PRODUCTS // (len(x) * others)), dim=1)


def _of_places(temperature: AdaptiveTemperature, x: Tensor, pool: Tensor, places: Tensor) -> Tensor:
    """τ (C, A, κ) of anchors with the rows of `pool` at their `places` (C, A, κ)."""
    head = torch.arange(len(pool), device=pool.device).view(-1, 1, 1)
    some = _some(x, places.shape[-1] * x.shape[-1])
    at = places.split([part.shape[1] for part in some], dim=1)
    taus = [temperature(part.unsqueeze(2), pool[head, of]).squeeze(2) for part, of in zip(some, at, strict=True)]
    return torch.cat(taus, dim=1)


def _of_anchors(hardest: Tensor, temperature: PerplexityTemperature) -> Tensor:
    """τ (C, A) of anchors with similarities (C, A, κ) of the negatives that the loss takes."""
    tau = of_perplexity(hardest, temperature.perplexity, temperature.tau_min, temperature.tau_max)
    return temperature.pinned(tau, tau.reciprocal().mean(-1))
