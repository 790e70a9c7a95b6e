"""What a study measures of every training: found impossible before its first step, and done when it has ended."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from ..callbacks import OnlineKNN
from ..distributed import apart, exchange, world
from ..evaluate import knn_accuracy
from ..evaluate.features import collect, encoding
from ..evaluate.ridge import ridge_probe
from ..models.modes import floating_dtype, in_mode
from ..runs.directory import RunDirectory
from ..runs.files import write_file
from .results import MEASURES

_KEPT = 1 << 30
"""Bytes of the bank's images that are kept for another look."""


class Measured(L.Callback):
    """Refuses a training before its first step whose encoder could not be measured; measures it when it has ended.

    `MEASURES` are of the bank and the queries of the run's `knn`, by its k and temperature; the first is what the run
    itself finds at its end. Recalibrated: running statistics are anew the average over batches of the bank, as it is
    measured, of the batches' own, by the weights as they are; images of all parts of the bank are in every batch, at
    most 1 GiB of them in every process. Weights and running statistics of the run stay. All processes measure, each
    its part; the first writes measures.json into the run directory.

    Raises:
        ValueError: the data have no classes, or nothing held out.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        why = trainer.datamodule.unmeasurable  # type: ignore[attr-defined]
        if why is not None:
            raise ValueError(f"data must be such that kNN can be measured, in a study of accuracies: {why}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        started = time.monotonic()
        with trainer.precision_plugin.forward_context():
            found = measure(trainer, pl_module)
        found |= {"step": trainer.global_step, "seconds": round(time.monotonic() - started, 1)}
        if trainer.is_global_zero:
            path = RunDirectory(Path(trainer.default_root_dir)).measures
            write_file(path, json.dumps(found, indent=1) + "\n")


def measure(trainer: L.Trainer, pl_module: Any) -> dict[str, Any]:
    """`MEASURES` of a module's encoder, the `penalty` of both ridge regressions, and of how many images they are."""
    knn = next(callback for callback in trainer.callbacks if isinstance(callback, OnlineKNN))  # type: ignore[attr-defined]
    datamodule, backbone, device = trainer.datamodule, pl_module.backbone, pl_module.device  # type: ignore[attr-defined]
    rank, processes = world()
    of_bank, of_queries = datamodule.features_loaders(knn.bank, knn.queries, shard=rank, num_shards=processes)
    norms = batch_norms(backbone)
    kinds = [encoding(backbone, device)]
    with in_mode(backbone, training=False):
        kept = _Kept(kinds[0], datamodule.measured_images(knn.bank, knn.queries)[0] // processes + 1)
        banks, bank_labels = collect(of_bank, [kept if norms else kinds[0]], shared=True)
        if norms:
            images = kept.images
            again = recalibrated(backbone, images, device, datamodule.batch_size // processes)
            kinds.append(again)
            if kept.every > 1:  # not all were kept
                banks += collect(of_bank, [again], shared=True)[0]
            else:
                with apart():
                    banks.append(_encoded(again, images, banks[0]))
        queries, query_labels = collect(of_queries, kinds, shared=True)
    found: dict[str, Any] = {}
    penalties = {}
    labels = [of.to(device) for of in (bank_labels, query_labels)]
    for suffix, bank, asked in zip(("", "_recalibrated"), banks, queries, strict=False):
        with apart():
            parts = bank.to(device), labels[0], asked.to(device), labels[1]
        options = {"num_classes": datamodule.num_classes, "shared": True}
        found[f"knn{suffix}"] = round(knn_accuracy(*parts, k=knn.k, temperature=knn.temperature, **options), 4)
        ridge = ridge_probe(*parts, **options)
        found[f"ridge{suffix}"], penalties[f"ridge{suffix}"] = round(ridge.accuracy, 4), ridge.penalty
    counts = [sum(of) for of in zip(*exchange((len(bank_labels), len(query_labels), kept.count)), strict=True)]
    return {
        # Without BatchNorm nothing is recalibrated: the same numbers.
        **{name: found.get(name, found[name.removesuffix("_recalibrated")]) for name in MEASURES},
        "penalty": penalties,
        "batch_norms": len(norms),
        "recalibrated_on": counts[2] if norms else 0,
        "images": {"bank": counts[0], "queries": counts[1]},
        "k": min(knn.k, counts[0]),
        "temperature": knn.temperature,
    }


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Those of a module that have running statistics, by their names."""
    return {
        name: norm
        for name, norm in module.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None
    }


class _Kept:
    """Features of images, of which every n-th one is kept, so that the others fit.

    Args:
        extract: what makes the features.
        expected: images at the most.
    """

    def __init__(self, extract: Callable[[Tensor], Tensor], expected: int) -> None:
        self._extract, self._expected = extract, expected
        self._seen, self.count = 0, 0
        self.every = 1
        self._parts: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        if not self._seen:
            self.every = -(-self._expected * images[0].numel() * images.element_size() // _KEPT)
        kept = images[-self._seen % self.every :: self.every]
        self._seen += len(images)
        self.count += len(kept)
        self._parts.append(kept.clone())  # a loader may use its memory again
        return self._extract(images)

    @property
    def images(self) -> Tensor | None:
        """(n, 3, H, W) in their order; None if there are none."""
        return torch.cat(self._parts) if self._parts else None


@torch.no_grad()
def recalibrated(
    backbone: nn.Module, images: Tensor | None, device: torch.device | str, batch: int
) -> Callable[[Tensor], Tensor]:
    """The encoder in evaluation mode, with running statistics of its own; call it in that mode.

    Args:
        backbone: images (n, 3, H, W) to features (n, d), in evaluation mode; it stays as it is.
        images: (n, 3, H, W), those of this process; None: it has none.
        device: where the backbone stands.
        batch: images at a time, nearly: batches are equally large, each of every part of the images.
    """
    norms = batch_norms(backbone)
    state = {
        f"{name}.{part}".lstrip("."): value.clone()
        for name, norm in norms.items()
        for part, value in norm.named_buffers(recurse=False)
    }
    dtype = floating_dtype(backbone)

    def encode(some: Tensor) -> Tensor:
        found: Tensor = functional_call(backbone, state, (some.to(device, dtype),))
        return found

    batches = 0 if images is None else -(-len(images) // max(batch, 1))
    several = world()[1] > 1
    synced = [norm for norm in norms.values() if isinstance(norm, SyncBatchNorm)]
    if several and synced:
        alone, _ = dist.new_subgroups(1)
    before = [(norm.training, norm.momentum, getattr(norm, "process_group", None)) for norm in norms.values()]
    try:
        with apart():
            for number in range(batches):
                assert images is not None
                for norm in norms.values():
                    # The average of all batches so far.
                    norm.training, norm.momentum = True, 1 / (number + 1)
                    if several and isinstance(norm, SyncBatchNorm):
                        norm.process_group = alone
                encode(images[number::batches])
    finally:
        for norm, (training, momentum, group) in zip(norms.values(), before, strict=True):
            norm.training, norm.momentum = training, momentum
            if isinstance(norm, SyncBatchNorm):
                norm.process_group = group
    if several:
        _average(state, batches)
    return encode


def _average(state: dict[str, Tensor], batches: int) -> None:
    """Statistics of all processes, each by how many batches they are of."""
    total = sum(exchange(batches))
    for value in state.values():
        if value.is_floating_point():
            value *= batches / total
            dist.all_reduce(value)


def _encoded(encode: Callable[[Tensor], Tensor], images: Tensor | None, like: Tensor) -> Tensor:
    """Features of images, on the CPU; `like` are others of them."""
    with torch.no_grad():
        parts: Sequence[Tensor] = [] if images is None else images.split(256)
        return torch.cat([like[:0], *(encode(part).cpu().to(like.dtype) for part in parts)])
