"""State that a run needs to continue exactly and that Lightning's checkpoints leave out."""

import random
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch

from ..methods.trainer import epoch_is_over
from ..runs.checkpoint import EXACT_RESUME


class ExactResume(L.Callback):
    """Saves and restores the random generators and the reader's position, and sees to Lightning's counters.

    Lightning saves the state of a loader with `state_dict`, but gives it back only if the checkpoint lies
    inside an epoch and nothing has asked for the number of steps before; a schedule does ask. So the state
    travels here, for every process, and is given back when training starts.

    Lightning counts an epoch in which a training stops (max_steps, max_time) as a whole one, and goes on within the
    old epoch from a checkpoint of its end if max_steps is set. So checkpoints hold the counters of one of two places:
    inside an epoch, after a batch, or between two epochs. It comes before the callbacks that look at the counters.

    Within an epoch the batches of an optimiser step are as many as they were, where a callback had changed
    `accumulate_grad_batches` (GradientAccumulationScheduler): Lightning tells callbacks of an epoch's start alone.

    Of another number of processes each goes on with the generators of one that there was.
    """

    def __init__(self) -> None:
        self._loader_state: dict[str, Any] | None = None
        self._generators: dict[str, Any] | None = None
        self._accumulated: int | None = None
        self._restored = False  # whether the generators are those of the checkpoint already
        self._given = 1  # accumulate_grad_batches before any callback changed it

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # What was loaded for a training that then did not start is none of the next one's.
        self._loader_state = self._generators = self._accumulated = None
        self._restored = False
        self._given = trainer.accumulate_grad_batches

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        loops = checkpoint["loops"]["fit_loop"]
        loops["state_dict"].pop("combined_loader", None)
        _count_anew(loops, trainer.accumulate_grad_batches)
        changed = trainer.accumulate_grad_batches if trainer.accumulate_grad_batches != self._given else None
        generators = [_generators()]
        if trainer.world_size > 1:
            own, generators = generators[0], [{}] * trainer.world_size
            torch.distributed.all_gather_object(generators, own)
        checkpoint[EXACT_RESUME] = {
            "generators": generators,
            "loader": None if (state := _state_of(trainer)) is None else state(),
            "accumulated": changed if _within(loops) else None,
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[EXACT_RESUME]
        processes = len(state["generators"])
        if processes != trainer.world_size and trainer.is_global_zero:
            print(
                f"the run goes on with {trainer.world_size} process(es) instead of {processes}: it sees the same images"
                " in the same batches, and draws other augmentations",
                flush=True,
            )
        if "accumulated" not in state:  # of older versions
            _count_anew(checkpoint["loops"]["fit_loop"], trainer.accumulate_grad_batches)
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if trainer.max_epochs not in (None, -1) and done > trainer.max_epochs:  # type: ignore[operator]
            raise ValueError(
                f"trainer.max_epochs must be at least {done}, the epochs that are trained already, got "
                f"{trainer.max_epochs}"
            )
        self._accumulated = state.get("accumulated")
        self._loader_state = state["loader"]
        self._generators = state["generators"][trainer.global_rank % processes]
        _check_generators(self._generators)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._loader_state is not None:
            trainer.train_dataloader.load_state_dict(self._loader_state)  # type: ignore[union-attr]
            self._loader_state = None
            # The fetcher holds an iterator from before the state was there.
            iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        elif self._generators is not None and _state_of(trainer) is None:
            # Such a loader draws an epoch's order when it begins, and perhaps its images while it gives them. Within an
            # epoch what is left of it is drawn anew, of which Lightning warns.
            _restore_generators(self._generators)
            iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
            self._restored = trainer.world_size == 1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # As late as possible: whatever prepares training may draw random numbers.
        if self._generators is not None:
            if not self._restored:
                _restore_generators(self._generators)
            self._generators = None
            # Lightning has counted, if at all, by a number of batches that need not be that of the checkpoint.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if self._accumulated is not None:
            trainer.accumulate_grad_batches = self._accumulated
            self._accumulated = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        started = trainer.fit_loop.epoch_progress.current.started  # type: ignore[attr-defined]
        if started and not epoch_is_over(trainer):
            for epochs in (trainer.fit_loop.epoch_progress.total, trainer.fit_loop.epoch_progress.current):
                epochs.processed = epochs.completed = epochs.started - 1  # type: ignore[attr-defined]


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


def _state_of(trainer: L.Trainer) -> Callable[[], dict[str, Any]] | None:
    """What gives the loader's state; None of one that has none, as torch's."""
    return getattr(trainer.train_dataloader, "state_dict", None)


def _within(loops: dict[str, Any]) -> bool:
    batches = loops["epoch_loop.batch_progress"]
    return batches["current"]["ready"] > 0 and not batches["is_last_batch"]


def _count_anew(loops: dict[str, Any], accumulated: int) -> None:
    """Set counters of Lightning's loops to those from which it goes on exactly, whatever hook they were saved in.

    Args:
        loops: state of the fit loop; changed in place.
        accumulated: batches of an optimiser step.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    last = batches["current"]["ready"]
    within = _within(loops)
    for counts in (epochs["total"], epochs["current"]):
        done = counts["started"] - within
        counts |= {"ready": done + within, "started": done + within, "processed": done, "completed": done}
    total = batches["total"]["processed"] if within else batches["total"]["ready"]
    for counts, number in ((batches["total"], total), (batches["current"], last if within else 0)):
        # Lightning goes on after a batch that is not yet completed: so it is in the hook of a batch's end.
        counts |= {"ready": number, "started": number, "processed": number, "completed": number - within}
    batches["is_last_batch"] = False
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    # It counts the step of that batch once it has loaded this, unless the step is still to come.
    counted_later = within and last % accumulated == 0
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - counted_later


def _generators() -> dict[str, Any]:
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _check_generators(state: dict[str, Any]) -> None:
    """Raise ValueError if the generators cannot be set to a state, while nothing has begun yet."""
    before = _generators()
    try:
        _restore_generators(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the state of its random generators cannot be restored: {error!r}") from error
    finally:
        _restore_generators(before)


def _restore_generators(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
