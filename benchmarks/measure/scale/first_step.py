"""A callback for `bench scale`: ends a run at its first optimiser step, and says when that was."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning

from ...system import child_processes, memory


class FirstStep(lightning.Callback):
    """Writes the clock (`time.monotonic`), the process's memory and that of its child processes, and exits.

    Args:
        path: of the JSON.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step < 1:
            return
        now = time.monotonic()
        self._path.write_text(json.dumps({"at": now, "memory": memory(), "children": _of_children()}))
        raise SystemExit(0)


def _of_children() -> int:
    """Resident bytes of this process's child processes."""
    pages = 0
    for pid in child_processes():
        with suppress(OSError):  # it has ended since
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
