"""The list of images that cannot be read."""

from pathlib import Path

import lightning as L


class SkippedFiles(L.Callback):
    """Writes `skipped_files.txt` (path, tab, reason) into the run directory if files were left out."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        skipped = trainer.datamodule.skipped  # type: ignore[attr-defined]
        if not skipped or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "skipped_files.txt"
        path.write_text("".join(f"{file}\t{reason}\n" for file, reason in skipped))
        print(f"{len(skipped)} unreadable files are left out; they are listed in {path}", flush=True)
