"""The list of images that cannot be read."""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

import lightning as L

from ..data.loader.bad_files import begin_to_tell, tell
from ..distributed import exchange
from ..left_out import DURING, summarise
from ..runs.directory import RunDirectory, write_skipped
from ..runs.files import Unwritten

log = logging.getLogger(__name__)


class SkippedFiles(L.Callback):
    """Tells what is trained on, and keeps `skipped_files.txt` (path, tab, reason), if files were left out.

    Files that turn out to be bad during the run join after every epoch, from all processes, and when it stops; at its
    end a line says how many there were. A list that cannot be written is a warning, and is tried again.
    """

    def __init__(self) -> None:
        self._unwritten = Unwritten()
        self._started = False  # until then nothing in the directory of a resumed run may change
        self._shared: set[tuple[str, str]] = set()  # what all processes list

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._started = False
        self._shared = set()
        begin_to_tell()
        if trainer.world_size > 1:
            # What the scan has left out may be a hundred thousand files, and hundreds of processes would send them.
            skipped: list[tuple[str, str]] = trainer.datamodule.skipped  # type: ignore[attr-defined]
            if len(set(exchange(hashlib.sha256(repr(skipped).encode()).hexdigest()))) == 1:
                self._shared.update(skipped)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = True
        self._write(trainer)
        parts = [getattr(getattr(trainer, "datamodule", None), "taken", "")]
        if _has_some(trainer):
            path = RunDirectory(Path(trainer.default_root_dir)).skipped
            listed = f": see {path}" if path.exists() else ""
            parts.append(f"{summarise(trainer.datamodule.skipped)}{listed}")  # type: ignore[attr-defined]
        if trainer.is_global_zero and any(parts):
            print(", ".join(filter(None, parts)), flush=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._join(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._join(trainer)  # what was measured after the last epoch has found some, too

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._count(trainer)

    def _join(self, trainer: L.Trainer) -> None:
        if trainer.world_size > 1:
            # Every process reads its own part of the files.
            skipped: list[tuple[str, str]] = trainer.datamodule.skipped  # type: ignore[attr-defined]
            new = [entry for entry in skipped if entry not in self._shared]
            found = dict.fromkeys(entry for part in exchange(new) for entry in part)
            skipped[:] = dict.fromkeys([*(entry for entry in skipped if entry in self._shared), *found])
            self._shared.update(found)
            for entry in found:
                tell(*entry)
        self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with suppress(OSError):  # what ended the run is what to show
            if self._started and _has_some(trainer):
                write_skipped(Path(trainer.default_root_dir), trainer.datamodule.skipped)  # type: ignore[attr-defined]
                self._count(trainer)

    def _count(self, trainer: L.Trainer) -> None:
        if _has_some(trainer):
            found = sum(reason.startswith(DURING) for _, reason in trainer.datamodule.skipped)  # type: ignore[attr-defined]
            if found:
                path = RunDirectory(Path(trainer.default_root_dir)).skipped
                files = "1 file has" if found == 1 else f"{found:,} files have"
                log.warning("%s turned out to be bad during the run: see %s", files, path)

    def _write(self, trainer: L.Trainer) -> None:
        if _has_some(trainer):
            run_dir, skipped = Path(trainer.default_root_dir), trainer.datamodule.skipped  # type: ignore[attr-defined]
            self._unwritten.write(str(RunDirectory(run_dir).skipped), lambda: write_skipped(run_dir, skipped))


def _has_some(trainer: L.Trainer) -> bool:
    """Whether files were left out and this process writes the list."""
    datamodule = getattr(trainer, "datamodule", None)
    return datamodule is not None and bool(datamodule.skipped) and trainer.is_global_zero
