"""A look at the pairs that a loss forms, apart from training."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import of_perplexity
from ..rows import unit
from ..temperature import PerplexityTemperature, Temperature

MOST_ANCHORS = 512
"""Anchors, channels or keys of a queue that are looked at, at most: more would only take memory."""


class Pairs(NamedTuple):
    """Similarity and temperature of pairs of one batch, detached, float32.

    Attributes:
        positive_similarity, positive_tau: (C, n) of n anchors with their positives.
        negative_similarity, negative_tau: (C, n, m) of the same anchors with m negatives each.
    """

    positive_similarity: Tensor
    positive_tau: Tensor
    negative_similarity: Tensor
    negative_tau: Tensor


def normalised_rows(z: Tensor) -> Tensor:
    """Projections (n, C, d) as L2-normalised rows (C, n, d), float32 or better."""
    return unit((z if z.dtype == torch.float64 else z.float()).transpose(0, 1))


def pairs_of(
    x: Tensor,
    y: Tensor,
    temperature: Temperature,
    negative: Tensor,
    similar: tuple[Tensor, Tensor] | None = None,
    top_k: int | None = None,
) -> Pairs:
    """Pairs of anchors and candidates, of which the first are the anchors' positives, in their order.

    Args:
        x: anchors (C, A, w), as φ reads them.
        y: candidates (C, B, w), as φ reads them; A ≤ B.
        temperature: of the pairs. One of a given perplexity has the mean that it says over the anchors looked at.
        negative: (A, B) bool, which candidates are an anchor's negatives; as many in every row.
        similar: anchors and candidates whose products are the similarities, if they are not x and y.
        top_k: hardest negatives that the loss takes; None: all.
    """
    u, v = similar or (x, y)
    with torch.autocast(x.device.type, enabled=False):
        similarity = u @ v.mT
        if isinstance(temperature, float):
            tau = torch.full_like(similarity, temperature)
        elif isinstance(temperature, PerplexityTemperature):
            tau = _of_anchors(similarity[:, negative].unflatten(1, (x.shape[1], -1)), temperature, top_k)
            tau = tau.unsqueeze(-1).expand(similarity.shape)
        else:
            tau = temperature(x, y)

    def positives(values: Tensor) -> Tensor:
        return values.diagonal(dim1=1, dim2=2).detach().float()

    def negatives(values: Tensor) -> Tensor:
        return values[:, negative].unflatten(1, (x.shape[1], -1)).detach().float()

    return Pairs(positives(similarity), positives(tau), negatives(similarity), negatives(tau))


def _of_anchors(similarity: Tensor, temperature: PerplexityTemperature, top_k: int | None) -> Tensor:
    """τ (C, A) of anchors with similarities (C, A, m) of their negatives."""
    hardest = similarity.topk(min(top_k or similarity.shape[-1], similarity.shape[-1]), dim=-1).values
    tau = of_perplexity(hardest, temperature.perplexity, temperature.tau_min, temperature.tau_max)
    return temperature.pinned(tau, tau.reciprocal().mean(-1))
