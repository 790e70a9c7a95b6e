"""The list of images that cannot be read."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch

from ..report.run import write_skipped


class SkippedFiles(L.Callback):
    """Keeps `skipped_files.txt` (path, tab, reason) in the run directory, if files were left out.

    Files that turn out to be bad during the run join after every epoch, from all processes, and when it stops.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = _write(trainer)
        if path is not None:
            count = len(trainer.datamodule.skipped)  # type: ignore[attr-defined]
            print(f"{count} unreadable files are left out; they are listed in {path}", flush=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            # Every process reads its own part of the files.
            skipped: list[tuple[str, str]] = trainer.datamodule.skipped  # type: ignore[attr-defined]
            found: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, skipped)
            skipped[:] = dict.fromkeys(entry for part in found for entry in part)
        _write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with suppress(OSError):  # what ended the run is the error to show
            _write(trainer)


def _write(trainer: L.Trainer) -> Path | None:
    """Write the list; returns its path, None if nothing was left out or another process writes."""
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is None or not datamodule.skipped or not trainer.is_global_zero:
        return None
    return write_skipped(Path(trainer.default_root_dir), datamodule.skipped)
