"""kNN accuracy of the features while they are learned."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch

from ..data.headers import NoImageLeftError
from ..evaluate import encode, knn_accuracy, pixel_features
from ..steps import begins, epoch_is_over


class OnlineKNN(L.Callback):
    """kNN on the encoder's features: training images are the bank, held-out images the queries.

    Raw pixels and the untrained encoder are measured once before training, as the baselines of the run. Where the data
    module's `unmeasurable` says that there is nothing to measure, that is one line before training.

    Args:
        every_n_epochs: measure after every n-th epoch, and at the end of training.
        k: neighbours, all of them in a smaller bank.
        temperature: neighbours vote with exp(similarity / temperature).

    Measuring that was cut short after an epoch is made up for when the run goes on.

    Attributes:
        between_batches: called with the trainer while an epoch is measured; it may raise.
        neighbours: how many voted when it was measured last: k, or all images of a smaller bank; None before.
        unmeasurable: why nothing is measured; None if something is, and before training.
        closed: whether the last of `history` was measured because training ended, after any save of its epoch.
        pixels, untrained: the two baselines in percent, None before training.
        history: (epoch, accuracy in percent), epochs counted from 1. The last one is of the end of training, inside
            that epoch or after it; when the training goes on, what would not have been measured is left out.
    """

    def __init__(self, every_n_epochs: int = 1, k: int = 200, temperature: float = 0.1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"knn.every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self.k = k
        self.temperature = temperature
        self.neighbours: int | None = None
        self.unmeasurable: str | None = None
        self.pixels: float | None = None
        self.untrained: float | None = None
        self.history: list[tuple[int, float]] = []
        self.between_batches: Callable[[L.Trainer], None] | None = None
        self._pending: int | None = None  # the epoch that is being measured
        self.closed = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if begins(trainer, stage):
            self.pixels = self.untrained = self.neighbours = self._pending = None
            self.history, self.closed = [], False

    def state_dict(self) -> dict[str, Any]:
        return {
            "pixels": self.pixels,
            "untrained": self.untrained,
            "history": list(self.history),
            "pending": self._pending,
            "neighbours": self.neighbours,
            "closed": self.closed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pixels, self.untrained = state_dict["pixels"], state_dict["untrained"]
        self.history = [(epoch, accuracy) for epoch, accuracy in state_dict["history"]]
        self._pending = state_dict.get("pending")
        self.closed = state_dict.get("closed", False)
        self.neighbours = state_dict.get("neighbours")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.closed:
            self.history.pop()
            self.closed = False
        whole = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        self.history = [entry for entry in self.history if entry[0] <= whole]  # of older versions
        # Data modules of others need not know of it.
        unmeasurable = getattr(trainer.datamodule, "unmeasurable", None)  # type: ignore[attr-defined]
        # Each process has looked for itself, and a folder changes; those that differ would wait for each other.
        self.unmeasurable = trainer.strategy.broadcast(unmeasurable)
        if self.unmeasurable is not None:
            self._pending = None
            if trainer.is_global_zero:
                print(f"kNN is not measured: {self.unmeasurable}", flush=True)
            return
        if self._pending is not None:
            accuracy = self._measure(trainer, pl_module)
            if accuracy is not None:
                self.history.append((self._pending, accuracy))
                _log(trainer, step=trainer.global_step - 1, knn=accuracy)  # as Lightning counts
            self._pending = None
        if self.pixels is None:
            self.pixels, self.untrained = self._measure(trainer, None), self._measure(trainer, pl_module)
            if self.pixels is not None and self.untrained is not None:
                _log(trainer, step=0, knn_pixels=self.pixels, knn_untrained=self.untrained)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 and epoch_is_over(trainer):
            self._pending = epoch
            accuracy = self._measure(trainer, pl_module, self.between_batches)
            self._pending = None
            if accuracy is not None:
                self.history.append((epoch, accuracy))
                # All processes have the same number, and the largest of them is that.
                pl_module.log("knn", accuracy, prog_bar=True, sync_dist=True, reduce_fx="max")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.fit_loop.epoch_progress.current.started  # type: ignore[attr-defined]
        if self.history and self.history[-1][0] >= epoch:
            return
        accuracy = self._measure(trainer, pl_module)
        if accuracy is not None:
            self.history.append((epoch, accuracy))
            self.closed = True
            _log(trainer, step=trainer.global_step, knn=accuracy)

    def _measure(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule | None,
        between_batches: Callable[[L.Trainer], None] | None = None,
    ) -> float | None:
        """Accuracy in percent of the module's encoder, of raw pixels without one; process 0 computes it.

        None where nothing can be measured, from the first time on that a part of the images is found to be gone.
        """
        if self.unmeasurable is not None:
            return None
        found: float | str = 0.0
        if trainer.is_global_zero:
            try:
                found = self._accuracy(trainer, pl_module, between_batches)
            except NoImageLeftError as error:  # in one process: the others wait for its word
                found = str(error)
                print(f"kNN is not measured any more: {found}", flush=True)
        found = trainer.strategy.broadcast(found)
        if isinstance(found, str):
            self.unmeasurable = trainer.datamodule.unmeasurable = found  # type: ignore[attr-defined]
            return None
        return found

    def _accuracy(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule | None,
        between_batches: Callable[[L.Trainer], None] | None,
    ) -> float:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        (bank, bank_labels), (queries, query_labels) = (
            self._features(trainer, pl_module, _watched(loader, trainer, between_batches))
            for loader in datamodule.features_loaders()
        )
        self.neighbours = min(self.k, len(bank_labels))
        return knn_accuracy(
            bank,
            bank_labels,
            queries,
            query_labels,
            k=self.k,
            temperature=self.temperature,
            num_classes=datamodule.num_classes,
        )

    @staticmethod
    def _features(
        trainer: L.Trainer, pl_module: L.LightningModule | None, loader: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if pl_module is None:
            return pixel_features(loader)
        with trainer.precision_plugin.forward_context():
            return encode(pl_module.backbone, loader, pl_module.device)  # type: ignore[arg-type]


def _watched(loader: Any, trainer: L.Trainer, between_batches: Callable[[L.Trainer], None] | None) -> Iterator[Any]:
    for batch in loader:
        if between_batches is not None:
            between_batches(trainer)
        yield batch


def _log(trainer: L.Trainer, *, step: int, **metrics: float) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)
