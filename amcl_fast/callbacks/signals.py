"""SIGINT and SIGTERM: save, then stop."""

import signal
import sys
from types import FrameType
from typing import Any

import lightning as L
import torch

from ..steps import at_logging_step, at_step_boundary
from .checkpoint import Checkpoint

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """Training was stopped by a signal, after a save; the exit code is 128 + signal number, as in shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class SaveOnSignal(L.Callback):
    """On SIGINT or SIGTERM: finish the step, save the checkpoint, raise `Interrupted`.

    The second signal has its usual effect at once.

    Args:
        checkpoint: what saves.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning has set its own handler for SIGTERM by now; it would stop without a save.
        self._previous = {signum: signal.signal(signum, self._note) for signum in _HANDLED}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if at_step_boundary(trainer, batch_idx):
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._received = signum
        self._restore()
        name = signal.Signals(signum).name
        print(f"\n{name}: saving after this step; once more to stop at once", file=sys.stderr, flush=True)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        received = self._received or 0
        if trainer.world_size > 1:
            # Schedulers signal every process, but not between the same two steps; agreeing waits for the GPU.
            if not at_logging_step(trainer):
                return
            agreed = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(agreed, reduce_op="max"))  # type: ignore[arg-type]
        if received:
            self.checkpoint.save(trainer)
            raise Interrupted(received)
