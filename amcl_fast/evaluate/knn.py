"""Weighted k-nearest-neighbour accuracy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import check_features

_CHUNK_ELEMENTS = 1 << 22
"""Similarities in memory at a time: 16 MiB, whatever the size of bank and queries."""


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int,
    chunk: int | None = None,
) -> float:
    """Share of the queries, in percent, whose k nearest neighbours in the bank vote for their class.

    Features are L2-normalised, neighbours are those of largest cosine similarity s, and each votes for its
    class with weight exp(s / temperature) (Wu et al., CVPR 2018, Section 3.4; k = 200, temperature = 0.1 in
    the AMCL paper). Evaluated in float32; of classes with equal votes the first wins.

    Args:
        bank: (B, d) features with known classes.
        bank_labels: (B,) int64, 0 to num_classes - 1.
        queries: (Q, d) features.
        query_labels: (Q,) int64, 0 to num_classes - 1.
        k: number of neighbours; the whole bank if that is smaller.
        temperature: above 0.
        num_classes: number of classes.
        chunk: queries compared with the bank at a time; by default so many that memory stays bounded.

    Raises:
        TypeError: features are not floating point or labels not int64.
        ValueError: shapes that do not fit, an empty bank or no queries, labels or settings out of range,
            features that are not finite.
    """
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank and queries must be (B, d) and (Q, d), got {tuple(bank.shape)} and {tuple(queries.shape)}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    check_features("bank", bank, "bank_labels", bank_labels, num_classes)
    check_features("queries", queries, "query_labels", query_labels, num_classes)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")

    size = len(bank)
    chunk = chunk or max(1, _CHUNK_ELEMENTS // max(size, num_classes))
    bank = F.normalize(bank.float(), dim=1)
    correct = torch.zeros((), dtype=torch.int64, device=bank.device)
    for rows, labels in zip(queries.split(chunk), query_labels.split(chunk), strict=True):
        similarity, index = (F.normalize(rows.float(), dim=1) @ bank.T).topk(min(k, size), dim=1, sorted=False)
        # Every weight of a row divided by the largest: votes compare the same, and exp cannot overflow.
        weights = ((similarity - similarity.amax(1, keepdim=True)) / temperature).exp()
        votes = weights.new_zeros(len(rows), num_classes).scatter_add_(1, bank_labels[index], weights)
        correct += (votes.argmax(1) == labels).sum()
    return 100 * correct.item() / len(queries)
