"""Checkpoints that are either the old file or the new one, whatever happens while they are written."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from .. import __version__
from ..steps import at_logging_step, at_step_boundary
from .guard import check_finite_weights


class SaveError(OSError):
    """A checkpoint could not be written; the one before is as it was."""


class Checkpoint(LightningCheckpoint):
    """Keeps `checkpoints/last.ckpt` in the run directory (the trainer's default_root_dir) up to date.

    Each save goes to a temporary name in the same folder, is flushed to the disk and renamed. Weights that
    are not finite are never saved. The file holds tensors and plain types, so it loads with
    weights_only; under `settings` it carries the run's config.yaml, its name and the version, so that it can be
    used without its folder.

    A save that fails in the middle of training, on a full disk for example, is a warning: training goes on and the
    next save may succeed. The last save of a run is not allowed to fail.

    Saves happen between optimiser steps only, since a checkpoint does not hold half-accumulated gradients.

    Args:
        every_n_epochs: save after every n-th epoch, and after the last one.
        every_n_steps: also save after every n-th optimiser step; 0 to not.
        every_n_minutes: also save when the last save is that old; 0 to not.
    """

    def __init__(self, every_n_epochs: int = 1, every_n_steps: int = 0, every_n_minutes: float = 10.0) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"checkpoint.every_n_epochs must be at least 1, got {every_n_epochs}")
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value < 0:
                raise ValueError(f"checkpoint.{name} must not be negative, got {value}")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.path: Path | None = None
        self._settings: dict[str, Any] = {}
        self._saved_step = 0
        self._saved_at = time.monotonic()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        run_dir = Path(trainer.default_root_dir)
        self.path = run_dir / "checkpoints" / "last.ckpt"
        config = run_dir / "config.yaml"
        if config.is_file():
            run = {"amcl_fast": __version__, "run": run_dir.resolve().name}
            self._settings = {**run, **yaml.safe_load(config.read_text())}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self._settings

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def save(self, trainer: L.Trainer) -> Path:
        """Write the checkpoint now; every process must call it.

        Raises:
            NonFiniteError: a weight is not finite. The previous checkpoint stays.
            SaveError: it cannot be written. The previous checkpoint stays.
        """
        assert self.path is not None
        check_finite_weights(trainer)
        # Every process must learn of a failure, or they would wait for each other at different places.
        problem = trainer.strategy.broadcast(self._write(trainer, self.path))
        self._saved_at = time.monotonic()
        if problem:
            kept = f"the last good one is {self.path}" if self.path.exists() else "none had been saved"
            raise SaveError(f"step {trainer.global_step}: the checkpoint cannot be saved ({problem}); {kept}")
        self._saved_step = trainer.global_step
        return self.path

    @staticmethod
    def _write(trainer: L.Trainer, path: Path) -> str:
        """Write the checkpoint; returns what went wrong, "" if nothing did."""
        partial = path.with_suffix(".partial")
        try:
            try:
                trainer.save_checkpoint(partial, weights_only=False)
            except OSError:
                # It fails in the process that writes; the others wait at the barrier inside save_checkpoint.
                trainer.strategy.barrier()
                raise
            if trainer.is_global_zero:
                _flush(partial)
                os.replace(partial, path)
                _flush(path.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            return str(error)
        return ""

    def _try_to_save(self, trainer: L.Trainer) -> None:
        try:
            self.save(trainer)
        except SaveError as error:
            warnings.warn(f"{error}; training goes on", stacklevel=2)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if at_step_boundary(trainer, batch_idx) and self._due(trainer):
            self._try_to_save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._try_to_save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved_step != trainer.global_step:
            self.save(trainer)

    def _due(self, trainer: L.Trainer) -> bool:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            return True
        if not self.every_n_minutes:
            return False
        late = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        if trainer.world_size == 1:
            return late
        # Clocks differ between processes, and agreeing costs a synchronisation: only now and then.
        if not at_logging_step(trainer):
            return False
        return trainer.strategy.reduce_boolean_decision(late, all=False)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
