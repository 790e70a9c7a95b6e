"""The helper's side: a program that answers a `Worker`, or the jobs of a `Pool`.

Every helper process imports this and waits for it, so it imports next to nothing.
"""

import os
import signal
import sys
from collections.abc import Callable

LENGTH = 8
"""Bytes that say how long a message is, before it."""

DONE, FAILED = b"\0", b"\1"
"""How the answer to a job begins."""


def ignore_signals() -> None:
    """A terminal or a batch system sends them to all processes of a run."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answer messages, one at a time, until the other side ends."""
    ignore_signals()
    requests, answers = sys.stdin.buffer, os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no message
    with os.fdopen(answers, "wb") as stream:
        while len(length := requests.read(LENGTH)) == LENGTH:
            result = answer(requests.read(int.from_bytes(length, "little")))
            stream.write(len(result).to_bytes(LENGTH, "little") + result)
            stream.flush()


def serve_jobs(answer: Callable[[bytes], bytes]) -> None:
    """Answer jobs, one at a time, until the pool ends. What `answer` raises is told."""

    def told(job: bytes) -> bytes:
        try:
            return DONE + answer(job)
        except Exception as error:
            return FAILED + _told(error)

    serve(told)


def _told(error: Exception) -> bytes:
    import json
    import traceback

    if isinstance(error, OSError):
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        told = ["OSError", error.errno, error.strerror or str(error), name]
    elif isinstance(error, ValueError):
        told = ["ValueError", str(error)]
    else:
        told = ["RuntimeError", "".join(traceback.format_exception(error)).strip()]
    return json.dumps(told).encode()
