"""Images per second and the share of time spent waiting for them."""

import time
from typing import Any

import lightning as L

from ..steps import at_logging_step


class Throughput(L.Callback):
    """Logs `images_per_second` (source images, all processes) and `wait_share`.

    Both are of the steps since they were last logged.

    `wait_share` is the part of the time, 0 to 1, in which training waited for the reader. The clock is read
    on the host without waiting for the device.
    """

    def __init__(self) -> None:
        self._images = 0
        self._started: float | None = None
        self._waited = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # What happens between epochs (kNN, checkpoints) is not training.
        self._started = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._started is None:
            self._restart(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch[1])
        if self._started is None or not at_logging_step(trainer):
            return
        seconds = time.perf_counter() - self._started
        waited = trainer.train_dataloader.wait_seconds - self._waited  # type: ignore[union-attr]
        pl_module.log("images_per_second", self._images * trainer.world_size / seconds, prog_bar=True)
        pl_module.log("wait_share", waited / seconds)
        self._restart(trainer)

    def _restart(self, trainer: L.Trainer) -> None:
        self._images = 0
        self._started = time.perf_counter()
        self._waited = trainer.train_dataloader.wait_seconds  # type: ignore[union-attr]
