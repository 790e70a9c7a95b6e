"""Tasks in processes of their own, so that one that crashes, hangs or leaves its device unusable takes nothing with it.

A worker does one task after the other and is replaced only when one has cost it its life: a process that imports torch
and starts a GPU takes seconds.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

# Of processes that have a GPU; one that is forked cannot use it.
METHOD = "spawn"
# Seconds from being asked to end to being ended.
_PATIENCE = 2.0

Row = dict[str, Any]


class Work(NamedTuple):
    """What workers do; both functions can be pickled.

    Attributes:
        perform: from (*task, until) to rows; `until` is when time.monotonic() would have it end, and it may look.
        unusable: asked after a task that failed: whether this process can do no other.
    """

    perform: Callable[..., Iterator[Row]]
    unusable: Callable[[], bool]


class Event(NamedTuple):
    """What happened to a task: `row` (its content), `done`, `failed` (why, in a line), `left out` (no time).

    `lost`: it failed with its process.
    """

    kind: str
    task: tuple[Any, ...]
    content: Any
    seconds: float = 0.0
    lost: bool = False


class _Worker:
    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context(METHOD)
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, work), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        other.close()
        self.task: tuple[Any, ...] | None = None
        self.started = self.latest = 0.0

    def begin(self, task: tuple[Any, ...], until: float, latest: float) -> None:
        """Give it a task; at `latest` it is to be ended."""
        self.task, self.started, self.latest = task, time.monotonic(), latest
        with contextlib.suppress(OSError):  # it has died: reading tells
            self.connection.send((task, until))

    def end(self) -> str:
        """End it with all that it has started; how it ended."""
        self.connection.close()
        if self._process.pid is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join(_PATIENCE)
            # Its session, if it got that far.
            with contextlib.suppress(OSError):
                if os.getpgid(self._process.pid) != os.getpgid(0):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.join()
        return _ending(self._process.exitcode)

    def died(self) -> str:
        """How it ended, after it has closed its end."""
        self._process.join(_PATIENCE)
        return self.end()


class Workers:
    """Processes that stay from one call to the next; a context manager that ends them."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(0)

    def keep(self, number: int) -> None:
        """End all workers but `number` of the idle ones."""
        ended = self._busy + self._idle[number:]
        self._busy, self._idle = [], self._idle[:number]
        for worker in ended:
            worker.end()

    def run(
        self, tasks: Sequence[tuple[Any, ...]], jobs: int, until: float, latest: float, longest: float
    ) -> Iterator[Event]:
        """Do the tasks in `jobs` processes side by side and tell what happens, in the order in which it does.

        Args:
            tasks: arguments of `Work.perform`.
            jobs: processes at most.
            until: time.monotonic() after which no task is begun.
            latest: when a task that is still going on is ended.
            longest: seconds after which any is.
        """
        waiting = deque(tasks)
        while self._busy or (waiting and time.monotonic() < until):
            while waiting and len(self._busy) < jobs and (now := time.monotonic()) < until:
                worker = self._idle.pop() if self._idle else _Worker(self._work)
                self._busy.append(worker)
                share = now + (until - now) * min(1.0, jobs / len(waiting))
                worker.begin(waiting.popleft(), share, min(latest, now + longest))
            timeout = min(worker.latest for worker in self._busy) - time.monotonic()
            ready = wait([worker.connection for worker in self._busy], max(0.0, timeout))
            for worker in list(self._busy):
                if worker.connection in ready:
                    yield from self._heard(worker)
                elif time.monotonic() >= worker.latest:
                    self._busy.remove(worker)
                    assert worker.task is not None
                    seconds = time.monotonic() - worker.started
                    worker.end()
                    yield Event("failed", worker.task, f"ended after {seconds:.1f} s, its time was up", seconds, True)
        for task in waiting:
            yield Event("left out", task, None)

    def _heard(self, worker: _Worker) -> Iterator[Event]:
        assert worker.task is not None
        seconds = time.monotonic() - worker.started
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            self._busy.remove(worker)
            yield Event("failed", worker.task, f"its process ended: {worker.died()}", seconds, True)
            return
        lost = kind == "lost"
        if kind != "row":
            self._busy.remove(worker)
            if lost:
                worker.died()
                kind = "failed"
            else:
                self._idle.append(worker)
        yield Event(kind, worker.task, content, seconds, lost)


def told(problem: BaseException) -> str:
    """An exception in one line."""
    first = (str(problem).splitlines() or [""])[0]
    return f"{type(problem).__name__}: {first}"[:300]


def _serve(connection: Connection, work: Work) -> None:
    """Do what comes until the other end is closed."""
    os.setsid()  # a Ctrl-C at the terminal is for the parent, and the children of this process end with it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    while True:
        try:
            task, until = connection.recv()
        except EOFError:
            return
        try:
            for row in work.perform(*task, until):
                connection.send(("row", row))
        except Exception as problem:
            if work.unusable():
                connection.send(("lost", told(problem)))
                # Whatever the device makes of it when libraries are unloaded.
                os._exit(1)
            connection.send(("failed", told(problem)))
        else:
            connection.send(("done", None))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
