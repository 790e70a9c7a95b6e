"""A helper program in a process of its own, so that what ends or hangs it does not end or hang a run.

It is neither forked (threads of DALI and CUDA would be lost in the copy) nor does it import torch: it starts in a
fraction of a second. It outlives signals, which a terminal or a batch system sends to all processes of a run, and ends
when its input does, so also when the run is killed.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.spawn import get_executable
from pathlib import Path

from amcl_fast.data.processes.serving import LENGTH

# The packages without what they import. Python's own modules come first, whatever lies beside a user's script.
_BOOTSTRAP = """
import sys, types
sys.path += {path!r}
for name, folder in {packages!r}:
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [folder]
from importlib import import_module
import_module({module!r}).main({arguments!r})
"""


class WorkerError(Exception):
    """The helper process gave no answer; the message says why."""


class Worker:
    """Runs `main(arguments)` of a module of this package, which calls `serve`, and exchanges messages with it."""

    def __init__(self, module: str, arguments: Sequence[str] = (), descriptors: Sequence[int] = ()) -> None:
        """Start the process.

        Args:
            module: its name below amcl_fast.data.
            arguments: of its `main`.
            descriptors: files of this process that stay open in it, under the same numbers.

        Raises:
            OSError: it cannot be started.
        """
        here = Path(__file__).parents[1]
        code = _BOOTSTRAP.format(
            path=sys.path,
            packages=[("amcl_fast", str(here.parent)), ("amcl_fast.data", str(here))],
            module=f"amcl_fast.data.{module}",
            arguments=list(arguments),
        )
        self._process = subprocess.Popen(
            # It is given `path`: no need to look for packages, nor in the current folder.
            [os.fsdecode(get_executable()), "-P", "-S", "-c", code],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )

    def send(self, message: bytes | memoryview) -> None:
        """Send a message, of bytes; waits while the process is busy and its pipe full.

        Raises:
            WorkerError: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            # A large image is not copied for the sake of its length.
            for view in (memoryview(len(message).to_bytes(LENGTH, "little")), memoryview(message)):
                while view:
                    view = view[self._process.stdin.write(view) :]
        except OSError:
            raise self._ended() from None

    def receive(self, seconds: float | None = None) -> bytes:
        """The next message, waited for `seconds` at most.

        Raises:
            WorkerError: the process has ended, or the time is over; it is then no use any more.
        """
        until = None if seconds is None else time.monotonic() + seconds
        return self._read(int.from_bytes(self._read(LENGTH, until), "little"), until)

    def _read(self, count: int, until: float | None) -> bytes:
        assert self._process.stdout is not None
        parts = []
        while count:
            if until is not None:
                left = max(until - time.monotonic(), 0)
                ready = select.poll()  # select() takes no descriptor above 1023
                ready.register(self._process.stdout, select.POLLIN)
                if not ready.poll(1000 * left):
                    self.close()
                    raise WorkerError("it takes too long")
            part = self._process.stdout.read(min(count, 1 << 20))
            if not part:
                raise self._ended()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _ended(self) -> WorkerError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.poll()
        self.close()
        if code is None:
            return WorkerError("it closed its pipes")
        return WorkerError(f"it ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}")

    def wait(self, seconds: float) -> None:
        """Let the process come to its own end, for so long at most."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self) -> None:
        """End the process while another thread waits for its answer: that thread is told that it has ended."""
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()
