"""The report of a run: a look at the pairs before, during and after training, and the page made of them."""

import io
import math
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .. import __version__
from ..methods.trainer import out_of_time
from ..models.modes import in_mode
from ..report.page import write_report
from ..runs.directory import RunDirectory, write_facts, write_skipped
from ..runs.files import Unwritten
from ..runs.read import head_metric
from ..setting_types import whole
from .capture import capture, hardest, has_pairs
from .checkpoint import Checkpoint
from .knn import OnlineKNN
from .metrics import EventsFile
from .neighbours import pictured
from .progress import steps_per_epoch

Kind = TypeVar("Kind", bound=L.Callback)


class Report(L.Callback):
    """Writes `report/` into the run directory when training ends, and snapshots of the pairs for it.

    After every epoch it logs the mean temperature of every head for positives and selected negatives of the last
    batch, if the temperature is adaptive.

    It must come after the callbacks that log at the end of training. A run that is resumed keeps the snapshot
    from before its first step. A report that cannot be written is a warning: it can be drawn later. A snapshot that
    cannot be written is tried again after every epoch.

    Args:
        pairs: pairs of views to look at, before and after.
    """

    def __init__(self, pairs: int = 512) -> None:
        whole("report.pairs", pairs, 1)
        self.pairs = pairs
        self._seconds = 0.0
        self._started = 0.0
        self._last_views: Sequence[torch.Tensor] | None = None
        self._unwritten = Unwritten()
        self.path: Path | None = None
        """The page, once this run has drawn it."""

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._capture(trainer, pl_module, "before")
            for checkpoint in _of(trainer, Checkpoint):
                for events in _events(trainer):
                    events.log_hyperparams(checkpoint.settings or {})
        if trainer.is_global_zero:
            run_dir, facts = Path(trainer.default_root_dir), _facts(trainer)
            self._write(RunDirectory(run_dir).facts, run_dir, lambda: write_facts(run_dir, facts))
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch and getattr(pl_module.criterion, "adaptive", None) is not None:
            self._last_views = batch[0]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._unwritten.retry()
        # Not in the batch's own hook: images per second are those of training alone.
        if self._last_views is not None:
            self._log_heads(trainer, pl_module, self._last_views)
            self._last_views = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = self._elapsed()
        self._unwritten.retry()
        self._capture(trainer, pl_module, "after")
        self._keep_neighbours(trainer)
        if not trainer.is_global_zero:
            return
        run_dir = Path(trainer.default_root_dir)
        try:
            if trainer.datamodule.skipped:  # type: ignore[attr-defined]
                write_skipped(run_dir, trainer.datamodule.skipped)  # type: ignore[attr-defined]
            finished = not out_of_time(trainer)
            end = {"finished": finished, "steps": trainer.global_step, "seconds": round(seconds, 1)}
            write_facts(run_dir, {**_facts(trainer), **end})
            write_report(run_dir)
            self.path = RunDirectory(run_dir).page
            figures = sorted(RunDirectory(run_dir).report.glob("*.png"))
            for events in _events(trainer):
                events.log_pictures({path.stem: path.read_bytes() for path in figures}, trainer.global_step)
        except Exception as error:  # whatever a drawing fails of, the last save of the run is still to come
            warnings.warn(f"no report: {error}; draw it later: amcl-fast report {run_dir}", stacklevel=2)

    def _write(self, path: Path, run_dir: Path, write: Callable[[], object]) -> None:
        self._unwritten.write(str(path), write)
        self._unwritten.keep(path, run_dir, write)

    def _elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._seconds + (time.monotonic() - self._started if self._started else 0.0)

    @staticmethod
    def _log_heads(trainer: L.Trainer, pl_module: Any, views: Sequence[torch.Tensor]) -> None:
        # Every process looks: frameworks gather what belongs to a global batch.
        gpus = [pl_module.device] if pl_module.device.type == "cuda" else []
        with (
            trainer.precision_plugin.forward_context(),
            in_mode(pl_module, training=True),
            torch.random.fork_rng(devices=gpus),
        ):
            pairs = pl_module.pairs_of_views(views)
        top_k = getattr(pl_module.criterion, "top_k", None) or 0
        _, negative = hardest(pairs, top_k)
        means = {"positive": pairs.positive_tau.mean(1), "negative": negative.mean((1, 2))}
        metrics = {
            head_metric(kind, head): tau for kind, taus in means.items() for head, tau in enumerate(taus.tolist())
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step - 1)  # as Lightning counts

    def _keep_neighbours(self, trainer: L.Trainer) -> None:
        knn = _knn(trainer)
        if knn is None or knn.found is None:
            return
        try:
            kept = pictured(*knn.found, trainer.datamodule, trainer.global_step)  # type: ignore[attr-defined]
        except Exception as error:  # in all processes; the last save of the run is still to come
            kept = None
            if trainer.is_global_zero:
                warnings.warn(f"no nearest images: {error}", stacklevel=2)
        if kept is not None:
            path = RunDirectory(Path(trainer.default_root_dir)).neighbours
            self._unwritten.write(str(path), lambda: kept.save(path))

    def _capture(self, trainer: L.Trainer, pl_module: L.LightningModule, moment: str) -> None:
        if not has_pairs(pl_module):
            return
        # Every process looks, though one writes: synchronised batch normalisation waits for all of them.
        with trainer.precision_plugin.forward_context():
            snapshot = capture(
                pl_module,
                trainer.datamodule,  # type: ignore[attr-defined]
                pairs=self.pairs,
                step=trainer.global_step,
                mapped=moment == "after" and trainer.is_global_zero,
            )
        if trainer.is_global_zero:
            path = RunDirectory(Path(trainer.default_root_dir)).snapshot(moment)
            self._write(path, Path(trainer.default_root_dir), lambda: snapshot.save(path))
            if moment == "before" and snapshot.views.size:
                for events in _events(trainer):
                    events.log_pictures({"pairs": _sheet(snapshot.views)}, trainer.global_step)


def _facts(trainer: L.Trainer) -> dict[str, Any]:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    device = trainer.strategy.root_device
    versions = {"amcl_fast": __version__, "python": platform.python_version(), "numpy": np.__version__}
    versions |= {"torch": torch.__version__, "lightning": L.__version__}
    knn = _knn(trainer)
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
    }
    return {
        "finished": False,
        "data": getattr(datamodule, "root", None),
        "training_images": datamodule.num_train,
        "classes": datamodule.num_classes,
        # What kNN was measured on: images of bank and queries; and up to which epoch on others.
        "measured_images": dict(knn.sampled) if knn else {},
        "measured_before": [dict(entry) for entry in knn.before] if knn else [],
        "measured_epoch": knn.history[-1][0] if knn and knn.history else None,
        "unmeasurable": knn.unmeasurable if knn else getattr(datamodule, "unmeasurable", None),
        "epochs": trainer.max_epochs,
        "steps_per_epoch": steps_per_epoch(trainer) if math.isfinite(trainer.num_training_batches) else None,
        "versions": versions,
        "machine": machine,
    }


def _of(trainer: L.Trainer, kind: type[Kind]) -> list[Kind]:
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def _knn(trainer: L.Trainer) -> OnlineKNN | None:
    return next(iter(_of(trainer, OnlineKNN)), None)


def _events(trainer: L.Trainer) -> list[EventsFile]:
    return [logger for logger in trainer.loggers if isinstance(logger, EventsFile)]


def _sheet(rows: NDArray[np.uint8]) -> bytes:
    """Pictures (R, P, H, W, 3), a row each, as PNG; without what draws figures, which takes a second to begin."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows])).save(file, "PNG")
    return file.getvalue()
