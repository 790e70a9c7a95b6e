"""One run at a time in a run directory, one process in any folder that wants it so."""

import fcntl
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

NAME = ".lock"
_ATTEMPTS = 10


class RunInUseError(OSError):
    """Another process is at work in the folder."""


class RunLock:
    """Keeps other runs out of a run directory until the block ends or the process does, however it does.

    The lock is the operating system's, on a file that stays behind, empty of meaning, when nobody holds it. Of a
    run with several processes only the first takes it.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self.run_dir: Path | None = None
        """What is locked."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back before the block ends."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = self.run_dir = None

    def acquire(self, run_dir: Path, doing: str = "trains there, and two runs never share a folder") -> None:
        """Take the lock of `run_dir`, which exists. Where the file system has no locks: a warning.

        Args:
            run_dir: the folder.
            doing: what whoever has it does.

        Raises:
            RunInUseError: another run has it.
            OSError: the lock file cannot be made.
        """
        path = run_dir / NAME
        for attempt in range(_ATTEMPTS):
            self._descriptor = descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self._descriptor, 1000).decode(errors="replace").strip() or "another process"
                raise RunInUseError(f"{run_dir} is in use: {holder} {doing}") from None
            except OSError as error:
                warnings.warn(f"{run_dir} cannot be locked ({error}): start no second run in it", stacklevel=2)
            # A run that did not start may have removed the file between the two calls: the next one makes another.
            if _is_file(path, self._descriptor):
                break
            if attempt == _ATTEMPTS - 1:  # a file system whose files have no lasting numbers
                warnings.warn(f"{run_dir} cannot be locked for certain: start no second run in it", stacklevel=2)
                break
            self.release()
        self.run_dir = run_dir
        with suppress(OSError):  # who holds it is a courtesy: a full disk has no room for it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _is_file(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that lies at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
