"""Weighted k-nearest-neighbour accuracy, and the features that it judges."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mode import in_mode

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
    _check_features("bank", bank, "bank_labels", bank_labels, num_classes)
    _check_features("queries", queries, "query_labels", query_labels, num_classes)
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


def _check_features(name: str, features: Tensor, labels_name: str, labels: Tensor, num_classes: int) -> None:
    if not features.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {features.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"{labels_name} must be int64, got {labels.dtype}")
    if not len(features):
        raise ValueError(f"{name} is empty: kNN needs at least one row")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{labels_name} must be ({len(features)},), one label a row of {name}, got {tuple(labels.shape)}"
        )
    lowest, highest = (int(value) for value in torch.aminmax(labels))
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"{labels_name} must lie in 0..{num_classes - 1} (num_classes={num_classes}), got {lowest}..{highest}"
        )
    if not torch.isfinite(features).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite values")


@torch.no_grad()
def encode(
    backbone: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Features of every image of a loader, computed in evaluation mode.

    Args:
        backbone: images (n, 3, H, W) to features (n, d); its training mode is restored afterwards, module by
            module.
        loader: yields (images, labels (n,) int64).
        device: where the backbone stands.

    Returns:
        Features (N, d) float32 and labels (N,), both on the CPU.

    Raises:
        ValueError: the loader yields nothing.
    """
    with in_mode(backbone, training=False):
        return _collect((backbone(images.to(device)), labels) for images, labels in loader)


def pixel_features(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The images themselves, flattened, as features: the baseline that an encoder has to beat.

    Args:
        loader: yields (images (n, 3, H, W), labels (n,) int64).

    Returns:
        Features (N, 3 * H * W) float32 and labels (N,), both on the CPU.

    Raises:
        ValueError: the loader yields nothing.
    """
    return _collect((images.flatten(1), labels) for images, labels in loader)


def _collect(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    # The loader may reuse a batch's memory, which `.float()` alone would keep sharing.
    parts = [(features.to("cpu", torch.float32, copy=True), labels.cpu().clone()) for features, labels in batches]
    if not parts:
        raise ValueError("loader yields no batch: there is nothing to evaluate")
    features, labels = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(labels)
