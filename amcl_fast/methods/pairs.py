"""A look at the pairs that a loss forms, apart from training."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..rows import unit
from ..temperature import AdaptiveTemperature, LearnedTemperature

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
    temperature: float | AdaptiveTemperature | LearnedTemperature,
    negative: Tensor,
    similar: tuple[Tensor, Tensor] | None = None,
) -> Pairs:
    """Pairs of anchors and candidates, of which the first are the anchors' positives, in their order.

    Args:
        x: anchors (C, A, w), as φ reads them.
        y: candidates (C, B, w), as φ reads them; A ≤ B.
        temperature: constant, adaptive or learned.
        negative: (A, B) bool, which candidates are an anchor's negatives; as many in every row.
        similar: anchors and candidates whose products are the similarities, if they are not x and y.
    """
    u, v = similar or (x, y)
    with torch.autocast(x.device.type, enabled=False):
        similarity = u @ v.mT
        learns = isinstance(temperature, torch.nn.Module)
        tau = temperature(x, y) if learns else torch.full_like(similarity, temperature)  # type: ignore[operator, arg-type]

    def positives(values: Tensor) -> Tensor:
        return values.diagonal(dim1=1, dim2=2).detach().float()

    def negatives(values: Tensor) -> Tensor:
        return values[:, negative].unflatten(1, (x.shape[1], -1)).detach().float()

    return Pairs(positives(similarity), positives(tau), negatives(similarity), negatives(tau))
