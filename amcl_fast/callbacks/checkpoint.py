"""Checkpoints that are either the old file or the new one, whatever happens while they are written."""

import errno
import os
import shlex
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from .. import __version__
from ..methods.trainer import at_logging_step, at_step_boundary, begins, epoch_is_over, stepped
from ..runs.directory import RunDirectory
from ..runs.files import NewFile, copy_file, move_into_place, of_place, partial_name
from ..runs.in_place import make_within
from ..runs.lock import RunLock
from ..runs.settings import read_settings
from ..setting_types import real, whole
from .guard import check_finite_weights
from .knn import OnlineKNN
from .metrics import log_before_save


class SaveError(OSError):
    """A checkpoint could not be written; the one before is as it was."""


class RunFolderError(OSError):
    """The run directory was renamed while the run went on, or deleted and cannot be made anew."""


class LocalCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to the disk and renames it.

    Lightning's own writes it to the temporary folder and moves it, which takes room there and is no rename where that
    is another file system.

    Args:
        run_dir: is never made: it has been deleted or renamed if it is not there.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir.absolute()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint; its folder is made.

        Raises:
            OSError: it cannot be written. What was there before is as it was.
        """
        if "://" in str(path):  # of a ModelCheckpoint of the user's
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        if path.absolute().is_relative_to(self.run_dir):
            if not self.run_dir.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.run_dir))
            make_within(self.run_dir, path.absolute().parent)
        else:  # of a ModelCheckpoint of the user's, or of a run directory that was renamed
            path.parent.mkdir(parents=True, exist_ok=True)
        with NewFile(path, durable=True) as file:
            target = _Target(file)
            try:
                torch.save(checkpoint, target)  # type: ignore[arg-type]
            except Exception:
                if target.error is not None:  # torch hides it behind errors of its own
                    raise target.error from None
                raise


class _Target:
    """What `torch.save` writes to: a file that remembers why it failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


class Checkpoint(LightningCheckpoint):
    """Keeps `checkpoints/last.ckpt` in the run directory (the trainer's default_root_dir) up to date.

    Each save goes to a temporary name in the same folder, is flushed to the disk and renamed. Weights that
    are not finite are never saved. The file holds tensors and plain types, so it loads with
    weights_only; under `settings` it carries the run's config.yaml, its name and the version, so that it can be
    used without its folder. What is logged for the step or epoch is in the logs before the checkpoint is.

    A save that fails in the middle of training, on a full disk for example, is a warning: training goes on and the
    next save may succeed. The last save of a run is not allowed to fail. A run directory that was deleted is made
    anew, if nobody else has its place. One that was renamed ends the run, once the checkpoint is saved there.

    Saves happen between optimiser steps only, since a checkpoint does not hold half-accumulated gradients. A training
    that is asked to stop within a step ends after it.

    Args:
        every_n_epochs: save after every n-th epoch, and after the last one.
        every_n_steps: also save after every n-th optimiser step; 0 to not.
        every_n_minutes: also save when the last save is that old; 0 to not.
        keep_every_n_epochs: keep the checkpoint of every n-th epoch as `checkpoints/epoch-NNNN.ckpt`; 0 to keep none.
        keep_last: of these only so many, the latest; 0: all.
        keep_best: keep the checkpoint after which kNN was best so far as `checkpoints/best.ckpt`.

    Attributes:
        path: the file, known once training was set up.
        enabled: whether anything is saved (trainer.enable_checkpointing); the hooks and checks of a save remain.
        lock: of the run directory; it is taken again where that is made anew.
        settings: what `settings` of the file holds beside name and version; None: what config.yaml says.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        every_n_steps: int = 0,
        every_n_minutes: float = 10.0,
        keep_every_n_epochs: int = 0,
        keep_last: int = 0,
        keep_best: bool = False,
    ) -> None:
        super().__init__()
        whole("checkpoint.every_n_epochs", every_n_epochs, 1)
        real("checkpoint.every_n_minutes", every_n_minutes, 0)
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("keep_every_n_epochs", keep_every_n_epochs),
            ("keep_last", keep_last),
        ):
            whole(f"checkpoint.{name}", value, 0)
        if keep_last and not keep_every_n_epochs:
            raise ValueError(f"checkpoint.keep_last must be 0 without checkpoint.keep_every_n_epochs, got {keep_last}")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep_every_n_epochs = keep_every_n_epochs
        self.keep_last, self.keep_best = keep_last, keep_best
        self._best: float | None = None  # kNN accuracy of what is kept
        self.enabled = True
        self.path: Path | None = None
        self.lock: RunLock | None = None
        self.settings: dict[str, Any] | None = None
        self._is_saved = False
        self._folder: int | None = None  # of the run, open: it is the same one under whatever name
        self._stops = False
        self._saved_step = 0
        self._saved_at = time.monotonic()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        run_dir = Path(trainer.default_root_dir)
        self.path, config = RunDirectory(run_dir).last, RunDirectory(run_dir).config
        if self.settings is None and config.is_file():
            self.settings = read_settings(config)
        if begins(trainer, stage):
            self._best = None
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = LocalCheckpointIO(run_dir)
        if trainer.is_global_zero:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._close()
            self._folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        name = Path(trainer.default_root_dir).resolve().name
        checkpoint["settings"] = {"amcl_fast": __version__, "run": name, **self.settings} if self.settings else {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stops = False  # a training before may have been broken off within a step
        self._saved_step = trainer.global_step or -1  # a training without a step is saved as well
        self._saved_at = time.monotonic()

    def save(self, trainer: L.Trainer, outputs: Any = None) -> Path:
        """Write the checkpoint now; every process must call it.

        Args:
            trainer: between two optimiser steps.
            outputs: of the step, as `on_train_batch_end` gets them, if it is called there.

        Raises:
            NonFiniteError: a weight is not finite. The previous checkpoint stays.
            SaveError: it cannot be written. The previous checkpoint stays.
            RunFolderError: the run directory was deleted and cannot be made anew; or renamed, and the checkpoint is
                saved there.
        """
        assert self.path is not None
        check_finite_weights(trainer)
        log_before_save(trainer, outputs)
        if not self.enabled:
            self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
            return self.path
        folder = Path(trainer.default_root_dir)
        place = self._place(trainer) or self._made_anew(trainer)
        # Every process must learn of a failure, or they would wait for each other at different places.
        gone, partial = trainer.strategy.broadcast((place is None, partial_name(self.path).name))
        if gone:
            raise RunFolderError(
                f"step {trainer.global_step}: {folder} was deleted while the run went on, and cannot be made anew; "
                "nothing can be saved"
            )
        path = (place or folder) / self.path.relative_to(folder)
        if self._is_saved and trainer.is_global_zero and place == folder and not os.path.lexists(path):
            warnings.warn(f"{path} was deleted while the run went on; it is saved anew", stacklevel=2)
        best, before = self._better(trainer), self._best
        self._best = before if best is None else best  # which the checkpoint knows
        problem, place = trainer.strategy.broadcast((self._write(trainer, path, path.with_name(partial)), place))
        self._saved_at = time.monotonic()
        if place != folder:
            said = f"step {trainer.global_step}: {folder} was renamed to {place} while the run went on"
            command = f"amcl-fast pretrain --resume {shlex.quote(str(place))}"
            raise RunFolderError(f"{said}; {problem or 'the checkpoint is saved there'}; go on with: {command}")
        if problem:
            self._best = before
            kept = f"the last good one is {self.path}" if self.path.exists() else "none had been saved"
            raise SaveError(f"step {trainer.global_step}: the checkpoint cannot be saved ({problem}); {kept}")
        self._saved_step, self._is_saved = trainer.global_step, True
        if best is not None:
            self._keep(trainer, self._files.best)
        return self.path

    @staticmethod
    def _write(trainer: L.Trainer, path: Path, partial: Path) -> str:
        """Write the checkpoint, as `partial` until it is whole; returns what went wrong, "" if nothing did."""
        try:
            try:
                trainer.save_checkpoint(partial, weights_only=False)
            except OSError:
                # It fails in the process that writes; the others wait at the barrier inside save_checkpoint.
                trainer.strategy.barrier()
                raise
            if trainer.is_global_zero:
                move_into_place(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            return str(of_place(error, partial, path))
        return ""

    def _place(self, trainer: L.Trainer) -> Path | None:
        """Where the run directory is now, which may have been renamed; None if it is no more."""
        folder = Path(trainer.default_root_dir)
        if self._folder is None:  # of another process
            return folder
        try:
            if os.path.samestat(os.stat(folder), os.fstat(self._folder)):
                return folder
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            return folder  # a file system that does not answer: the save says so
        place = Path(os.readlink(f"/proc/self/fd/{self._folder}"))
        if place == folder.resolve():
            return folder
        return place if place.is_dir() else None

    def _made_anew(self, trainer: L.Trainer) -> Path | None:
        """The run directory, empty, where it was deleted; None if something else has its place or it cannot be made."""
        folder = Path(trainer.default_root_dir)
        try:
            folder.mkdir(parents=True)
            self._close()
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if self.lock is not None:
                self.lock.release()
                self.lock.acquire(folder)
        except OSError:
            return None
        self._is_saved = False
        told = f"step {trainer.global_step}: {folder} was deleted while the run went on"
        warnings.warn(f"{told}; it is made anew, without what was in it", stacklevel=2)
        return folder

    def _close(self) -> None:
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def _try_to_save(self, trainer: L.Trainer, outputs: Any = None) -> bool:
        try:
            self.save(trainer, outputs)
        except SaveError as error:
            warnings.warn(f"{error}; training goes on", stacklevel=2)
            return False
        return True

    def _keep(self, trainer: L.Trainer, kept: Path) -> bool:
        """Keep the checkpoint that was just saved: a second name for the file, a copy where there are none."""
        assert self.path is not None
        if not trainer.is_global_zero:
            return False
        try:
            copy_file(self.path, kept, link=True)
        except OSError as error:
            warnings.warn(f"{kept} cannot be kept ({error}); training goes on", stacklevel=2)
            return False
        return True

    def _remove_earlier(self, number: int) -> None:
        """Remove checkpoints of epochs before `number` but for the latest of them that are to stay."""
        found = [path for of, path in self._files.epochs().items() if of < number]
        for path in found[: max(0, len(found) + 1 - self.keep_last)]:
            with suppress(OSError):  # it takes room, and no more
                path.unlink()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_between_steps(trainer)
        if at_step_boundary(trainer) and self._due(trainer):
            self._try_to_save(trainer, outputs)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not epoch_is_over(trainer):
            return  # training ends here, and saves there
        due = self._keeps(trainer) or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if (due or self._better(trainer) is not None) and self._try_to_save(trainer):
            self.keep_if_due(trainer)

    def keep_if_due(self, trainer: L.Trainer) -> None:
        """Keep what was just saved at the end of an epoch, if that epoch's is to be kept."""
        if not (self._keeps(trainer) and epoch_is_over(trainer)):
            return
        number = trainer.current_epoch + 1
        if self._keep(trainer, self._files.epoch(number)) and self.keep_last:
            self._remove_earlier(number)

    @property
    def _files(self) -> RunDirectory:
        assert self.path is not None
        return RunDirectory.of(self.path)

    def _better(self, trainer: L.Trainer) -> float | None:
        """kNN accuracy of the present weights, if they are to be kept as the best; None if not."""
        if not (self.keep_best and self.enabled):
            return None
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        measured = [knn.history[-1] for knn in callbacks if isinstance(knn, OnlineKNN) and knn.history]
        # Within the next epoch the last one measured is of other weights.
        if not measured or measured[0][0] != trainer.fit_loop.epoch_progress.current.started:  # type: ignore[attr-defined]
            return None
        accuracy = measured[0][1]
        return accuracy if self._best is None or accuracy > self._best else None

    def _keeps(self, trainer: L.Trainer) -> bool:
        return (
            self.enabled
            and self.keep_every_n_epochs > 0
            and (trainer.current_epoch + 1) % self.keep_every_n_epochs == 0
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # What was measured because training ends comes after the save of its epoch.
        closed = any(knn.closed for knn in trainer.callbacks if isinstance(knn, OnlineKNN))  # type: ignore[attr-defined]
        if closed or self._saved_step != trainer.global_step:
            self.save(trainer)

    def _stop_between_steps(self, trainer: L.Trainer) -> None:
        """Put off a stop within an optimiser step, of max_time for example: its gradients would be lost."""
        if not stepped(trainer):
            self._stops |= trainer.should_stop
            trainer.should_stop = False
        elif self._stops:
            self._stops, trainer.should_stop = False, True

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
