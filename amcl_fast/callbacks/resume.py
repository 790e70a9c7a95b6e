"""State that a run needs to continue exactly and that Lightning's checkpoints leave out."""

import random
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch

KEY = "exact_resume"


class ExactResume(L.Callback):
    """Saves and restores the random generators and the reader's position, for every process.

    Lightning saves the state of a loader with `state_dict`, but gives it back only if the checkpoint lies
    inside an epoch and nothing has asked for the number of steps before; a schedule does ask. So the state
    travels here, and is given back when training starts.

    Raises:
        ValueError: the checkpoint was written by another number of processes.
    """

    def __init__(self) -> None:
        self._loader_state: dict[str, Any] | None = None
        self._generators: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
        generators = [_generators()]
        if trainer.world_size > 1:
            own, generators = generators[0], [{}] * trainer.world_size
            torch.distributed.all_gather_object(generators, own)
        checkpoint[KEY] = {
            "generators": generators,
            "loader": trainer.train_dataloader.state_dict(),  # type: ignore[union-attr]
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[KEY]
        processes = len(state["generators"])
        if processes != trainer.world_size:
            raise ValueError(
                f"this checkpoint was written by {processes} processes and resumes with as many, got "
                f"{trainer.world_size}; set trainer.devices and trainer.num_nodes to what they were"
            )
        self._loader_state = state["loader"]
        self._generators = state["generators"][trainer.global_rank]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._loader_state is not None:
            trainer.train_dataloader.load_state_dict(self._loader_state)  # type: ignore[union-attr]
            self._loader_state = None
            # The fetcher holds an iterator from before the state was there.
            iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # As late as possible: whatever prepares training may draw random numbers.
        if self._generators is not None:
            _restore_generators(self._generators)
            self._generators = None


class OpenRun(L.Callback):
    """Changes a run's files once everything is loaded, before the first step, in the first process.

    It comes right after `ExactResume` and before every callback that writes.

    Args:
        open: what changes them.
        retry: called after every epoch, for what could not be written then.

    Attributes:
        opened: whether the files were changed.
    """

    def __init__(self, open: Callable[[], None], retry: Callable[[], None]) -> None:
        self._open = open
        self._retry = retry
        self.opened = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A resume that fails in another process fails: none begins before all have loaded.
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._open()
        self.opened = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._retry()


def _generators() -> dict[str, Any]:
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_generators(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
