"""The other processes of a run, where Lightning has started them."""

import os
import signal
import threading
from contextlib import suppress

import lightning as L


class Others(L.Callback):
    """Says which of the processes that Lightning has started was killed: it kills the others, and says nothing."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, process in enumerate(getattr(trainer.strategy.launcher, "procs", ()), 1):
            threading.Thread(target=_await, args=(number, process.pid), daemon=True).start()


def _await(number: int, pid: int) -> None:
    with suppress(ChildProcessError, OSError):  # it has been waited for; nobody can be told
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # type: ignore[attr-defined]
        if ended is not None and ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
            name = signal.Signals(ended.si_status).name
            told = f"process {number} (pid {pid}) was ended by {name}, and the others end with it"
            os.write(2, f"\namcl-fast pretrain: error: {told}\n".encode())
