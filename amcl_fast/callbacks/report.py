"""The report of a run: a look at the pairs before and after training, and the page made of them."""

import platform
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from .. import __version__
from ..report.page import write_report
from ..report.run import snapshot_path, write_facts
from ..report.snapshot import capture


class Report(L.Callback):
    """Writes `report/` into the run directory when training ends, and snapshots of the pairs for it.

    It must come after the callbacks that log at the end of training. A run that is resumed keeps the snapshot
    from before its first step.

    Args:
        pairs: pairs of views to look at, before and after.
    """

    def __init__(self, pairs: int = 512) -> None:
        if pairs < 1:
            raise ValueError(f"report.pairs must be at least 1, got {pairs}")
        self.pairs = pairs
        self._seconds = 0.0
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._capture(trainer, pl_module, "before")
        if trainer.is_global_zero:
            write_facts(Path(trainer.default_root_dir), _facts(trainer))
        self._started = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = self._elapsed()
        self._capture(trainer, pl_module, "after")
        if trainer.is_global_zero:
            run_dir = Path(trainer.default_root_dir)
            write_facts(run_dir, {**_facts(trainer), "finished": True, "seconds": round(seconds, 1)})
            write_report(run_dir)

    def _elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._seconds + (time.monotonic() - self._started if self._started else 0.0)

    def _capture(self, trainer: L.Trainer, pl_module: L.LightningModule, moment: str) -> None:
        # Every process looks, though one writes: synchronised batch normalisation waits for all of them.
        with trainer.precision_plugin.forward_context():
            snapshot = capture(
                pl_module,
                trainer.datamodule,  # type: ignore[attr-defined]
                pairs=self.pairs,
                step=trainer.global_step,
            )
        if trainer.is_global_zero:
            snapshot.save(snapshot_path(Path(trainer.default_root_dir), moment))


def _facts(trainer: L.Trainer) -> dict[str, Any]:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    device = trainer.strategy.root_device
    versions = {"amcl_fast": __version__, "python": platform.python_version(), "numpy": np.__version__}
    versions |= {"torch": torch.__version__, "lightning": L.__version__}
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
    }
    return {
        "finished": False,
        "training_images": datamodule.num_train,
        "classes": datamodule.num_classes,
        "epochs": trainer.max_epochs,
        "versions": versions,
        "machine": machine,
    }
