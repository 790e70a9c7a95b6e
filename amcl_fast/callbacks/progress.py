"""One line per epoch, for output that is not a terminal."""

import time

import lightning as L


class EpochSummary(L.Callback):
    """Prints epoch, last logged loss, kNN, images per second, share of waiting and duration."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

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
        metrics = trainer.callback_metrics
        parts = [text.format(float(metrics[name])) for name, text in formats.items() if name in metrics]
        seconds = time.perf_counter() - self._started
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        print("  ".join([epoch, *parts, f"{seconds:.1f} s"]), flush=True)
