"""Helper processes without torch that share the jobs of a data set: headers to check, shards to index or to write.

A job and its answer are bytes. The module that runs in the processes has a `main(arguments)` that calls `serve_jobs`.
"""

import builtins
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Self

from amcl_fast.data.processes.serving import FAILED
from amcl_fast.data.processes.worker import Worker, WorkerError

_MOST_PROCESSES = 32
_ATTEMPTS = 2
_AHEAD = 2  # jobs handed out for each process, so that none waits for the one that asks


class Pool:
    """Processes that answer jobs. They start when there is work for them, and end with the block or with this process.

    What a job raises, its `map` raises: OSError and ValueError as they are, anything else as RuntimeError with the
    traceback. A process that dies is started again, once for each job.
    """

    def __init__(self, module: str, arguments: Sequence[str] = (), processes: int | None = None) -> None:
        """Make a pool.

        Args:
            module: its name below amcl_fast.data.
            arguments: of its `main`.
            processes: how many at most; by default as many as there are cores for this process.
        """
        self.processes = processes or min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)
        self._module, self._arguments = module, list(arguments)
        # A thread for each process: it waits for the answer, and does nothing else.
        self._threads = ThreadPoolExecutor(self.processes)
        self._idle: deque[Worker] = deque()
        self._all: list[Worker] = []
        self._lock = Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map(self, jobs: Iterable[bytes]) -> Iterator[bytes]:
        """The answers in the order of the jobs, which are taken no further ahead than the processes can use.

        Raises:
            OSError: a process cannot be started, or dies of a job twice; or the job raised it.
            ValueError: the job raised it.
            RuntimeError: the job raised something else.
        """
        waiting: deque[Future[bytes]] = deque()
        try:
            for job in jobs:
                waiting.append(self._threads.submit(self._run, job))
                if len(waiting) > _AHEAD * self.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes, busy ones too."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.close()
        self._all.clear()

    def _run(self, job: bytes) -> bytes:
        for attempt in range(_ATTEMPTS):
            worker = self._worker()
            try:
                worker.send(job)
                answer = worker.receive()
            except WorkerError as error:
                if self._closed or attempt == _ATTEMPTS - 1:
                    raise OSError(f"a helper process ({self._module}) does not stay: {error}") from None
                continue
            self._idle.append(worker)
            if answer[:1] == FAILED:
                raise _error(json.loads(answer[1:]))
            return answer[1:]
        raise AssertionError

    def _worker(self) -> Worker:
        with self._lock:
            if self._closed:
                raise OSError("the pool is closed")
            if self._idle:
                return self._idle.popleft()
            self._all.append(Worker(self._module, self._arguments))
            return self._all[-1]


def _error(told: list) -> Exception:
    kind, *arguments = told
    if kind == "OSError" and arguments[0] is None:
        arguments = arguments[1:2]
    error: Exception = getattr(builtins, kind)(*arguments)
    return error
