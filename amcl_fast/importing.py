"""The first seconds of a command, in which it imports what it needs."""

import gc
import os
import signal
import threading
from contextlib import suppress
from typing import Any, Self


class Importing:
    """Until a command `begins`, a Ctrl-C ends the process where it comes, with `told` on stderr; nothing is collected.

    Imports swallow a KeyboardInterrupt now and then, and there is nothing yet to clean up. Nor is there garbage among
    what they make, and to look for it would take a fifth of their time, and again and again later; in a process that is
    the command's `own` nobody ever looks.
    """

    def __init__(self, told: str, own: bool) -> None:
        self._told, self._own = told, own
        self._previous: Any = None

    def __enter__(self) -> Self:
        self._collects = gc.isenabled()
        gc.disable()
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual and threading.current_thread() is threading.main_thread():  # Python allows it there alone
            self._previous = signal.signal(signal.SIGINT, self._leave)
        return self

    def __exit__(self, *_: object) -> None:
        self._collect()
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def begins(self) -> None:
        """From here on a Ctrl-C is a KeyboardInterrupt, which cleans up."""
        if self._own:
            gc.freeze()
        self._collect()
        if signal.getsignal(signal.SIGINT) == self._leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _collect(self) -> None:
        if self._collects:
            gc.enable()

    def _leave(self, signum: int, frame: object) -> None:
        with suppress(OSError):
            os.write(2, f"{self._told}\n".encode())
        os._exit(128 + signum)
