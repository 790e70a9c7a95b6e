"""The other processes of a run, where Lightning has started them."""

import os
import select
import signal
import threading
from contextlib import suppress
from typing import Any

import lightning as L

from ..launch import by_others, rank

FIRST = "AMCL_FAST_FIRST"
"""Variable of the environment: the process that has started this one, for Lightning."""

_SECONDS = 10.0
"""For which a process may outlive the first one: it may lose its connection, and say so itself."""


class Others(L.Callback):
    """Sees to it that of the processes that Lightning has started none outlives another, and says which was killed.

    Lightning kills the others if one of those that it has started ends, and says nothing. These end by themselves if
    the first one is no more, which with NCCL waits for it otherwise.
    """

    def __init__(self) -> None:
        self._over = threading.Event()

    def watch(self, trainer: L.Trainer) -> None:
        """From the start of the processes on, which comes before the hooks of callbacks."""
        launcher: Any = trainer.strategy.launcher
        if not rank() and hasattr(launcher, "_call_children_scripts"):
            start = launcher._call_children_scripts

            def start_and_watch() -> None:
                os.environ[FIRST] = str(os.getpid())
                start()
                for number, process in enumerate(launcher.procs, 1):
                    threading.Thread(target=_await, args=(number, process.pid), daemon=True).start()

            launcher._call_children_scripts = start_and_watch
        elif rank() and not by_others() and FIRST in os.environ:
            threading.Thread(target=self._await_first, args=(int(os.environ[FIRST]),), daemon=True).start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._over.set()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._over.set()

    def _await_first(self, pid: int) -> None:
        try:
            first = os.pidfd_open(pid)
        except ProcessLookupError:
            pass
        except OSError:
            return  # of an old kernel
        else:
            select.select([first], [], [])
            os.close(first)
        if not self._over.wait(_SECONDS):
            os.write(2, f"\namcl-fast pretrain: error: process {rank()} ends with process 0 (pid {pid})\n".encode())
            os._exit(1)


def _await(number: int, pid: int) -> None:
    with suppress(ChildProcessError, OSError):  # it has been waited for; nobody can be told
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # type: ignore[attr-defined]
        if ended is not None and ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
            name = signal.Signals(ended.si_status).name
            told = f"process {number} (pid {pid}) was ended by {name}, and the others end with it"
            os.write(2, f"\namcl-fast pretrain: error: {told}\n".encode())
