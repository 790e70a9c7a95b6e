"""Images per second and the share of time spent waiting for them."""

import time
from dataclasses import dataclass
from typing import Any

import lightning as L

from ..methods.trainer import at_logging_step


@dataclass
class _Span:
    """What was trained on since a moment: source images of this process, and when that was by both clocks."""

    started: float
    waited: float | None
    images: int = 0

    def rates(self, trainer: L.Trainer) -> dict[str, float]:
        """`images_per_second` and, if the loader tells it, `wait_share` until now; {} without an image."""
        seconds = time.perf_counter() - self.started
        if not self.images or seconds <= 0:
            return {}
        rates = {"images_per_second": self.images * trainer.world_size / seconds}
        if (waited := _waited(trainer)) is not None and self.waited is not None:
            rates["wait_share"] = (waited - self.waited) / seconds
        return rates


class Throughput(L.Callback):
    """Logs `images_per_second` (source images, all processes) and `wait_share`.

    Both are of the steps since they were last logged.

    `wait_share` is the part of the time, 0 to 1, in which training waited for the reader. The clock is read
    on the host without waiting for the device.

    Attributes:
        epoch: the same two figures of this epoch, up to its last batch so far, whether or not they were logged; {}
            before that.
        recent: those of the steps since they were last logged, or that were logged with this batch.
    """

    def __init__(self) -> None:
        self.epoch: dict[str, float] = {}
        self.recent: dict[str, float] = {}
        self._since: _Span | None = None
        self._whole: _Span | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since, self._whole, self.epoch, self.recent = None, None, {}, {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # What happens between epochs (kNN, checkpoints) is not training.
        self._since, self._whole, self.epoch = None, None, {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._since is None:
            self._since, self._whole = self._from_now(trainer), self._from_now(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._since is None or self._whole is None:
            return
        self._since.images += len(batch[1])
        self._whole.images += len(batch[1])
        self.epoch, self.recent = self._whole.rates(trainer), self._since.rates(trainer)
        if at_logging_step(trainer):
            if self.recent:
                pl_module.log("images_per_second", self.recent["images_per_second"], prog_bar=True)
                if "wait_share" in self.recent:
                    pl_module.log("wait_share", self.recent["wait_share"])
            self._since = self._from_now(trainer)

    @staticmethod
    def _from_now(trainer: L.Trainer) -> _Span:
        return _Span(time.perf_counter(), _waited(trainer))


def _waited(trainer: L.Trainer) -> float | None:
    """Seconds for which the loader was waited for; None of a loader that does not tell."""
    return getattr(trainer.train_dataloader, "wait_seconds", None)
