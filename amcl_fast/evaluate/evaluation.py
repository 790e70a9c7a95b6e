"""kNN and linear probe of an encoder, any nn.Module, on any loaders."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..modes import in_mode
from .features import Progress, encode, silent
from .knn import knn_accuracy
from .linear import RATES, ProbeResult, ShuffledFeatures, linear_probe


class ImageBatches(Protocol):
    """One epoch of (images (n, 3, H, W), labels (n,) int64) at every `iter`, of `len` batches."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Evaluation:
    """What an encoder is worth on one data set, and how that was measured.

    Attributes:
        knn: kNN accuracy in percent.
        k, temperature: of kNN.
        linear: accuracies of the linear probe.
        epochs, batch_size: of the linear probe.
        augmented: whether it saw augmented images, new ones every epoch, or features computed once.
        training_images, queries: numbers of images learned from and measured on.
        features: width of the features.
    """

    knn: float
    k: int
    temperature: float
    linear: ProbeResult
    epochs: int
    batch_size: int
    augmented: bool
    training_images: int
    queries: int
    features: int

    def as_dict(self) -> dict[str, Any]:
        """All of it but the classifiers, as plain values."""
        probe = self.linear
        return {
            "training_images": self.training_images,
            "queries": self.queries,
            "features": self.features,
            "knn": {"top1": self.knn, "k": self.k, "temperature": self.temperature},
            "linear": {
                "top1": probe.top1[probe.best],
                "top5": probe.top5[probe.best] if probe.top5 else None,
                "rate": probe.rates[probe.best],
                "chosen_on": "the queries themselves",
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "training_images": "augmented every epoch" if self.augmented else "features computed once",
                "sweep": {
                    "rates": list(probe.rates),
                    "top1": list(probe.top1),
                    "top5": list(probe.top5) if probe.top5 else None,
                },
            },
        }


def evaluate(
    backbone: nn.Module,
    bank: Iterable[tuple[Tensor, Tensor]],
    queries: Iterable[tuple[Tensor, Tensor]],
    *,
    num_classes: int,
    augmented: ImageBatches | None = None,
    k: int = 200,
    temperature: float = 0.1,
    rates: Sequence[float] = RATES,
    epochs: int = 100,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Evaluation:
    """kNN and linear probe of a frozen encoder.

    Args:
        backbone: images (n, 3, H, W) to features (n, d). It is moved to `device`; weights, running statistics and
            modes stay as they are.
        bank: yields (images, labels (n,) int64) of the training images, without augmentation.
        queries: the same of the images to measure on.
        num_classes: number of classes.
        augmented: the training images augmented anew every epoch, for the linear probe; the encoder then runs once
            an epoch for all rates. None: the probe learns from the features of `bank`.
        k, temperature: see `knn_accuracy`.
        rates, epochs: see `linear_probe`.
        batch_size: of the linear probe; of `augmented`, if that is given.
        device: where everything runs.
        progress: wraps the long loops.

    Raises:
        TypeError, ValueError: as `knn_accuracy` and `linear_probe`, or a loader yields nothing.
    """
    backbone = backbone.to(device)
    bank_features, bank_labels = encode(backbone, progress(bank, "training images"), device)
    query_features, query_labels = encode(backbone, progress(queries, "held-out images"), device)
    knn = knn_accuracy(
        bank_features.to(device),
        bank_labels.to(device),
        query_features.to(device),
        query_labels.to(device),
        k=k,
        temperature=temperature,
        num_classes=num_classes,
    )
    train = (
        ShuffledFeatures(bank_features, bank_labels, batch_size)
        if augmented is None
        else EncodedBatches(backbone, augmented, device)
    )
    linear = linear_probe(
        train,
        query_features,
        query_labels,
        num_classes=num_classes,
        rates=rates,
        epochs=epochs,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    return Evaluation(
        knn=knn,
        k=min(k, len(bank_labels)),
        temperature=temperature,
        linear=linear,
        epochs=epochs,
        batch_size=batch_size,
        augmented=augmented is not None,
        training_images=len(bank_labels),
        queries=len(query_labels),
        features=bank_features.shape[1],
    )


class EncodedBatches:
    """Features of a loader's images, computed while it is iterated over.

    Args:
        backbone: images (n, 3, H, W) to features (n, d), on `device`; it runs in evaluation mode.
        loader: one epoch of (images, labels) at every `iter`.
        device: where the backbone stands.
    """

    def __init__(self, backbone: nn.Module, loader: ImageBatches, device: torch.device | str) -> None:
        self._backbone, self._loader, self._device = backbone, loader, device

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with in_mode(self._backbone, training=False):
            for images, labels in self._loader:
                with torch.no_grad():
                    features = self._backbone(images.to(self._device)).float()
                yield features, labels
