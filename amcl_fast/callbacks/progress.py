"""One line per epoch, for output that is not a terminal."""

import time

import lightning as L

from ..steps import epoch_is_over
from .knn import OnlineKNN


class EpochSummary(L.Callback):
    """Prints epoch, last logged loss, kNN, images per second, share of waiting and duration.

    kNN is that of this epoch. The line of an epoch in which training stops names the step.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()  # within an epoch its start is not told again

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        formats = {
            "loss": "loss {:.4g}",
            "knn": "kNN {:.1f} %",
            "images_per_second": "{:,.0f} images/s",
            "wait_share": "waiting {:.0%}",
        }
        metrics = dict(trainer.callback_metrics)
        if not _measured(trainer):
            metrics.pop("knn", None)  # of an epoch before
        parts = [text.format(float(metrics[name])) for name, text in formats.items() if name in metrics]
        seconds = time.perf_counter() - self._started
        epoch = f"epoch {trainer.current_epoch + 1}{_of_epochs(trainer)}"
        if not epoch_is_over(trainer):
            epoch += f", stopped at step {trainer.global_step}"
        print("  ".join([epoch, *parts, f"{seconds:.1f} s"]), flush=True)


def _measured(trainer: L.Trainer) -> bool:
    """Whether kNN was measured after this epoch."""
    histories = [knn.history for knn in trainer.callbacks if isinstance(knn, OnlineKNN)]  # type: ignore[attr-defined]
    return any(history and history[-1][0] == trainer.current_epoch + 1 for history in histories)


def _of_epochs(trainer: L.Trainer) -> str:
    """How many epochs there will be, the last one perhaps in part: "/4", or nothing if there is no end."""
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        return ""
    per_epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
    return f"/{-(-int(steps) // per_epoch)}"
