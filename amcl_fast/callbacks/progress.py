"""How far a run has come: a line per epoch or a bar, with the estimate of its end."""

import math
import time
from datetime import datetime, timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer, TQDMProgressBar

from ..methods.trainer import at_logging_step, epoch_is_over, stepped
from ..progress import duration
from .knn import PROBE, OnlineKNN
from .throughput import Throughput


class End(L.Callback):
    """Estimates when a run ends, from the time that this process has seen it take.

    The steps left take what those of this epoch and of the one before took, the very first left out, which waits for
    compilers and caches. Every epoch that ends adds what lay between the last two (checkpoints), and every measuring of
    kNN that is due what the last one took; what has not been seen yet counts nothing. `max_steps` and `max_time` end a
    run before its epochs do. A run that goes on is judged by its time since.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._before = 0.0, 0  # seconds and steps of the epoch before
        self._epoch: tuple[float, int] | None = None  # when the steps of this epoch began to count, and their number
        self._now = 0.0, 0  # when the last step was done, and its number
        self._closing = 0.0  # seconds between two epochs, without kNN
        self._measured = 0  # how often kNN was, when the last step was done
        self._to_close = 0  # epochs whose steps are done, but not what follows them: 1 after the last step of one
        self._logged: int | None = None  # the first step of this epoch whose metrics were due

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._forget()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now, step = time.monotonic(), trainer.global_step
        self._logged = None
        if self._epoch is None:  # the first step is still to come
            return
        (began, first), (ended, last) = self._epoch, self._now
        if last > first:
            self._before = ended - began, last - first
        knn = _knn(trainer)
        self._closing = max(now - ended - sum(knn.seconds[self._measured :] if knn else ()), 0.0)
        self._epoch, self._now = (now, step), (now, step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not stepped(trainer):  # a part of a step tells nothing of how long one takes
            return
        self._now = time.monotonic(), trainer.global_step
        if self._epoch is None:
            self._epoch = self._now
        if self._logged is None and at_logging_step(trainer):
            self._logged = trainer.global_step
        self._to_close = int(epoch_is_over(trainer))
        knn = _knn(trainer)
        self._measured = len(knn.seconds) if knn else 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._to_close = 0

    def has_logged(self, trainer: L.Trainer) -> bool:
        """Whether the loss that was last logged is one of this epoch: that of a step is logged after its hooks."""
        return self._logged is not None and self._logged < trainer.global_step

    def seconds_left(self, trainer: L.Trainer) -> float | None:
        """Seconds until training has ended, None where nothing is known: before the third step, or without an end."""
        by_steps = self._by_steps(trainer)
        if by_steps is None and math.isfinite(trainer.estimated_stepping_batches):
            return None
        limits = [] if by_steps is None else [by_steps]
        for timer in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(timer, Timer) and (seconds := timer.time_remaining()) is not None:
                limits.append(seconds + _of_one(_knn(trainer)))  # which is measured then
        return max(min(limits), 0.0) if limits else None

    def _by_steps(self, trainer: L.Trainer) -> float | None:
        steps = trainer.estimated_stepping_batches
        if self._epoch is None or not math.isfinite(steps):
            return None
        (began, first), (ended, last) = self._epoch, self._now
        seconds, done = self._before[0] + ended - began, self._before[1] + last - first
        if done < 1:
            return None
        step, per_epoch = trainer.global_step, steps_per_epoch(trainer)
        whole, rest = divmod(int(steps), per_epoch)
        over = step // per_epoch - self._to_close
        closings = max(whole + (rest > 0) - over, 0)
        knn = _knn(trainer)
        measurings = 0 if knn is None else knn.due(over, whole) + (rest > 0 or not knn.due(whole - 1, whole))
        return (int(steps) - step) * seconds / done + closings * self._closing + measurings * _of_one(knn)


class EpochSummary(End):
    """Prints epoch, last logged loss, kNN, images per second, share of waiting, the estimate of the end and duration.

    One line per epoch, for output that is not a terminal. All of it is of this epoch: the loss is that of its last step
    where none was logged in it, kNN is left out where it was not measured. Images per second and waiting are
    `Throughput`'s of the whole epoch. The line of an epoch in which training stops names the step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._started = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started = time.perf_counter()  # within an epoch its start is not told again

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        formats = {
            "loss": "loss {:.4g}",
            "knn": "kNN {:.1f} %",
            PROBE: "probe {:.1f} %",
            "images_per_second": "{:,.0f} images/s",
            "wait_share": "waiting {:.0%}",
        }
        metrics: dict[str, Any] = _of_this_epoch(trainer)
        if self._logged is not None:
            metrics["loss"] = trainer.callback_metrics["loss"]
        elif self._epoch is not None:  # a step was done
            metrics["loss"] = pl_module.step_metrics()["loss"]  # type: ignore[operator]
        metrics |= _measured(trainer)
        parts = [text.format(float(metrics[name])) for name, text in formats.items() if name in metrics]
        seconds = time.perf_counter() - self._started
        epoch = _epoch(trainer)
        if not epoch_is_over(trainer):
            epoch += f", stopped at step {trainer.global_step}"
        left = self.seconds_left(trainer)
        if left is not None and trainer.global_step < trainer.estimated_stepping_batches and not trainer.should_stop:
            parts.append(f"{duration(left)} left, until {clock(left)}")
        print("  ".join([epoch, *parts, f"{seconds:.1f} s"]), flush=True)


class ProgressBar(TQDMProgressBar):
    """Lightning's, with the estimate of the run's end and epochs counted from 1, as everywhere else.

    Images per second are of this epoch, and so is the loss.

    Args:
        end: what estimates it, another callback of the trainer.
    """

    def __init__(self, end: End) -> None:
        super().__init__()
        self._end = end

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        total = self.trainer.num_training_batches
        self._begin(done if done < total else 0)  # a run that goes on within an epoch is told of no beginning of it

    def on_train_epoch_start(self, *args: Any) -> None:
        self._begin(0)

    def _begin(self, batches: int) -> None:
        bar, total = self.train_progress_bar, self.trainer.num_training_batches
        bar.set_description(_epoch(self.trainer), refresh=False)
        bar.initial = 0
        bar.reset(int(total) if math.isfinite(total) else None)
        bar.initial = bar.n = batches  # of which no rate is shown: they took another process's time
        bar.refresh()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        for name in ("v_num", "images_per_second", "loss", "knn"):
            metrics.pop(name, None)
        ours: dict[str, Any] = {}
        if self._end.has_logged(trainer):
            ours["loss"] = f"{float(trainer.progress_bar_metrics['loss']):.4g}"
        if (accuracy := trainer.progress_bar_metrics.get("knn")) is not None:
            ours["kNN"] = f"{float(accuracy):.1f} %"
        if rates := _of_this_epoch(trainer):
            ours["images/s"] = f"{rates['images_per_second']:,.0f}"
        left = self._end.seconds_left(trainer)
        end = {} if left is None else {"left": duration(left), "until": clock(left)}
        return {**ours, **metrics, **end}


def clock(seconds: float, now: datetime | None = None) -> str:
    """The time in so many seconds: `14:32`, `Fri 14:32` on another day, `2026-12-24 14:32` in a week or later."""
    now = now or datetime.now()
    then = now + timedelta(seconds=seconds)
    days = (then.date() - now.date()).days
    return then.strftime("%H:%M" if not days else "%a %H:%M" if days < 7 else "%Y-%m-%d %H:%M")


def steps_per_epoch(trainer: L.Trainer) -> int:
    """Optimiser steps of a whole epoch."""
    return -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)


def _knn(trainer: L.Trainer) -> OnlineKNN | None:
    found = (callback for callback in trainer.callbacks if isinstance(callback, OnlineKNN))  # type: ignore[attr-defined]
    return next((knn for knn in found if knn.unmeasurable is None), None)


def _of_one(knn: OnlineKNN | None) -> float:
    """Seconds that the last measuring took."""
    return knn.seconds[-1] if knn is not None and knn.seconds else 0.0


def _of_this_epoch(trainer: L.Trainer) -> dict[str, float]:
    """`images_per_second` and `wait_share` of the epoch so far; {} without `Throughput`."""
    found = (callback.epoch for callback in trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]
    return next((dict(rates) for rates in found), {})


def _measured(trainer: L.Trainer) -> dict[str, float]:
    """kNN of this epoch, and the probe, where they were measured."""
    of_knn = [knn for knn in trainer.callbacks if isinstance(knn, OnlineKNN)]  # type: ignore[attr-defined]
    last = {
        name: history[-1] for knn in of_knn for name, history in (("knn", knn.history), (PROBE, knn.probed)) if history
    }
    return {name: accuracy for name, (epoch, accuracy) in last.items() if epoch == trainer.current_epoch + 1}


def _epoch(trainer: L.Trainer) -> str:
    """Which epoch it is of how many, the last one perhaps in part: "epoch 3/4", or "epoch 3" if there is no end."""
    steps = trainer.estimated_stepping_batches
    of = "" if steps == float("inf") else f"/{-(-int(steps) // steps_per_epoch(trainer))}"
    return f"epoch {trainer.current_epoch + 1}{of}"
