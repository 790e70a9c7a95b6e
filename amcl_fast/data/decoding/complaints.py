"""Keep off the terminal what image libraries print there of damaged images, at every decode and without a name.

libjpeg and libpng, which decode for DALI on the CPU, print through C's variable `stderr`. That variable (not descriptor
2, which Python and crash handlers write to) gets a pipe to a small process, which hands on all else at once, so that
nothing is lost if this process crashes.
"""

import atexit
import ctypes
import functools
import os
import select
import time

from amcl_fast.data.decoding.complaints_process import HEARD, MARK, MARKED
from amcl_fast.data.processes.worker import Worker

_LINE_BUFFERED = 1
# That the process is waited for: once until it has started, then for each answer.
_START_SECONDS, _SECONDS = 30.0, 1.0


class Complaints:
    """Counts the complaints about damaged pixels of all decoders of this process, which are not shown any more."""

    def __init__(self) -> None:
        """Begin; it cannot be undone before the process ends.

        Raises:
            OSError: there is no stderr, or no process to be had.
            ValueError: the C library has no such variable.
        """
        self._libc = ctypes.CDLL(None)
        self._libc.fdopen.restype, self._libc.fdopen.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_char_p)
        self._libc.setvbuf.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
        self._libc.fputs.argtypes = ctypes.c_char_p, ctypes.c_void_p
        self._variable = ctypes.c_void_p.in_dll(self._libc, "stderr")
        self._shown = os.dup(2)
        lines, self._pipe = os.pipe()
        self._answers, answers = os.pipe()
        os.set_blocking(self._answers, False)
        self._worker = Worker(
            "decoding.complaints_process",
            [str(d) for d in (lines, self._shown, answers)],
            (lines, self._shown, answers),
        )
        os.close(lines)
        os.close(answers)
        self._heard = self._sent = self._marked = 0  # complaints, and marks out and back
        self._process = os.getpid()
        self._stream = self._libc.fdopen(self._pipe, b"w")
        self._libc.setvbuf(self._stream, None, _LINE_BUFFERED, 1 << 12)
        self._before, self._variable.value = self._variable.value, self._stream
        atexit.register(self._end)

    def heard(self) -> int:
        """How many there were up to now, every one of a decode that has ended included.

        Unless the process is held up: then it is not waited for until it has answered what it was asked before.
        """
        seconds = 0.0
        if self._marked == self._sent:
            self._sent += 1
            self._libc.fputs(MARK, self._stream)
            seconds = _SECONDS if self._marked else _START_SECONDS
        until = time.monotonic() + seconds
        while self._marked < self._sent:
            try:
                answers = os.read(self._answers, 1 << 16)
            except BlockingIOError:
                left = until - time.monotonic()
                if left <= 0:
                    break
                _wait(self._answers, left)
                continue
            if not answers:  # the process has ended
                self._sent = self._marked
                break
            self._heard += answers.count(HEARD)
            self._marked += answers.count(MARKED)
        return self._heard

    def _end(self) -> None:
        if os.getpid() != self._process:  # a copy of the process
            return
        self._variable.value = self._before
        # A decoder that is still at work prints to the terminal, and the other process comes to its end.
        os.dup2(self._shown, self._pipe)
        self._worker.wait(_SECONDS)


@functools.cache
def complaints() -> Complaints | None:
    """Those of this process, counted from the first call on; None where that cannot be done."""
    try:
        return Complaints()
    except (OSError, ValueError, AttributeError):
        return None


def _wait(descriptor: int, seconds: float) -> None:
    ready = select.poll()  # select() takes no descriptor above 1023
    ready.register(descriptor, select.POLLIN)
    ready.poll(1000 * seconds)
