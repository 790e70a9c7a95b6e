"""kNN and linear probe of an encoder, any nn.Module, on any loaders."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import apart, exchange, together, world
from ..models.modes import in_mode
from .features import Progress, encode, encoding, silent
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
    dtype: torch.dtype = torch.float32,
    shared: bool = False,
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
        batch_size: of the linear probe; of `augmented`, if that is given, of all processes together.
        device: where everything runs.
        dtype: of the features that are kept; float16 takes half the memory.
        shared: bank, queries and `augmented` give this process's part of the images; those of bank and queries may be
            none. All processes of the group call this, and each gets the result of all.
        progress: wraps the long loops.

    Raises:
        TypeError, ValueError: as `knn_accuracy` and `linear_probe`, or a loader yields nothing.
        ElsewhereError: another process has failed.
    """
    with apart(shared):
        backbone = backbone.to(device)
    parts: list[Tensor] = []
    for loader, title in ((bank, "batches of training images"), (queries, "batches of held-out images")):
        found = encode(backbone, progress(loader, title), device, dtype=dtype, shared=shared)
        with apart(shared):
            parts += (part.to(device) for part in found)
    bank_features, bank_labels, query_features, query_labels = parts
    knn = knn_accuracy(
        bank_features,
        bank_labels,
        query_features,
        query_labels,
        k=k,
        temperature=temperature,
        num_classes=num_classes,
        shared=shared,
        progress=progress,
    )
    train = (
        ShuffledFeatures(bank_features, bank_labels, batch_size, shared=shared)
        if augmented is None
        else EncodedBatches(backbone, augmented, device, shared=shared)
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
        shared=shared,
        progress=progress,
    )
    counts = exchange((len(bank_labels), len(query_labels))) if shared else [(len(bank_labels), len(query_labels))]
    training_images, asked = (sum(count) for count in zip(*counts, strict=True))
    return Evaluation(
        knn=knn,
        k=min(k, training_images),
        temperature=temperature,
        linear=linear,
        epochs=epochs,
        batch_size=batch_size,
        augmented=augmented is not None,
        training_images=training_images,
        queries=asked,
        features=bank_features.shape[1],
    )


class EncodedBatches:
    """Features of a loader's images, computed while it is iterated over.

    Args:
        backbone: images (n, 3, H, W) to features (n, d), on `device`; it runs in evaluation mode.
        loader: one epoch of (images, labels) at every `iter`.
        device: where the backbone stands.
        shared: the loader gives this process's part of every batch, of as many rows in all processes. They all iterate
            in step, and each gets the features of the whole batch.
    """

    def __init__(
        self, backbone: nn.Module, loader: ImageBatches, device: torch.device | str, *, shared: bool = False
    ) -> None:
        self._backbone, self._loader, self._device = backbone, loader, device
        self._shared = shared and world()[1] > 1

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with in_mode(self._backbone, training=False):
            yield from self._whole() if self._shared else self._own()

    def _own(self) -> Iterator[tuple[Tensor, Tensor]]:
        extract = encoding(self._backbone, self._device)
        for images, labels in self._loader:
            with torch.no_grad():
                features = extract(images).float()
            yield features, labels

    def _whole(self) -> Iterator[tuple[Tensor, Tensor]]:
        own = self._own()
        while True:
            with together():
                batch = next(own, None)
                parts = [part.to(self._device).contiguous() for part in batch or ()]
                whole = [part.new_empty(len(part) * world()[1], *part.shape[1:]) for part in parts]
            if batch is None:
                return
            for every, part in zip(whole, parts, strict=True):
                dist.all_gather_into_tensor(every, part)
            yield whole[0], whole[1]
