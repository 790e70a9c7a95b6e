"""Checkpoints that are either the old file or the new one, whatever happens while they are written."""

import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from ..steps import at_logging_step, at_step_boundary
from .guard import check_finite_weights


class Checkpoint(LightningCheckpoint):
    """Keeps `checkpoints/last.ckpt` in the run directory (the trainer's default_root_dir) up to date.

    Each save goes to a temporary name in the same folder, is flushed to the disk and renamed. Weights that
    are not finite are never saved. The file holds tensors and plain types, so it loads with
    weights_only.

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
        self._saved_step = 0
        self._saved_at = time.monotonic()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def save(self, trainer: L.Trainer) -> Path:
        """Write the checkpoint now; every process must call it.

        Raises:
            NonFiniteError: a weight is not finite. The previous checkpoint stays.
        """
        assert self.path is not None
        check_finite_weights(trainer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            _flush(partial)
            os.replace(partial, self.path)
            _flush(self.path.parent)
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        return self.path

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if at_step_boundary(trainer, batch_idx) and self._due(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.save(trainer)

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
