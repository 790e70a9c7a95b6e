"""A callback that puts a file where a run would make a folder."""

from pathlib import Path

import lightning as L


class Block(L.Callback):
    """At the start of the training, in the place of `report/`."""

    def on_train_start(self, trainer: L.Trainer, *_: object) -> None:
        folder = Path(trainer.default_root_dir) / "report"
        if folder.is_dir():
            folder.rmdir()
        folder.touch()
