"""Processes of their own, in which `bench scale` measures, so that the memory of each is its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ...system import cores


class Failed(Exception):
    """A process has ended without an answer."""


def measure(
    what: str, request: Mapping[str, Any], environment: Mapping[str, str], processes: int = 1
) -> list[dict[str, Any]]:
    """Have `what`, a key of `answers.ANSWERS`, measured by so many processes at once; their answers by rank.

    Raises:
        Failed: one of them ended without an answer; its error is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder, _running() as started:
        for rank in range(processes):
            about = {"rank": rank, "processes": processes, "group": f"{folder}/group"}
            process = Process(
                [sys.executable, "-m", f"{__package__}.answers", what],
                dict(environment) | {"OMP_NUM_THREADS": str(max(1, cores() // processes))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            started.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps(dict(request) | about).encode())
            process.stdin.close()
        answers = []
        for process in started:
            assert process.stdout is not None
            lines = process.stdout.read().splitlines()
            if process.wait() or not lines:
                raise Failed(f"{what}: the process that measures it ended with code {process.returncode}")
            answers.append(json.loads(lines[-1]))
    return answers


class Process(subprocess.Popen[bytes]):
    """A process in a session of its own: a Ctrl-C reaches it only through whoever started it. It finds this package.

    It ends with whoever started it, with those that it has started, whatever ends that one: a second process waits
    for the end of a pipe, and kills them.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        about = dict(os.environ) | {"PYTHONPATH": path} | dict(environment)
        super().__init__(command, env=about, start_new_session=True, **streams)
        try:
            self._guard: subprocess.Popen[bytes] = subprocess.Popen(
                ["sh", "-c", 'read _; kill -s KILL -- "-$1" 2>/dev/null', "sh", str(self.pid)],
                stdin=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except BaseException:  # Ctrl-C as well: nobody else knows of it yet
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()
            raise

    def end(self) -> None:
        """Kill it, with those that it has started, if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()
        self._guard.kill()
        self._guard.wait()
        for stream in (self.stdin, self.stdout, self._guard.stdin):
            if stream is not None:
                stream.close()


@contextmanager
def _running() -> Iterator[list[Process]]:
    """Processes that are put into the list do not outlive the block."""
    started: list[Process] = []
    try:
        yield started
    finally:
        for process in started:
            process.end()
