"""One run at a time in a run directory, one process at a file that wants it so.

The lock is the operating system's (flock) and dies with its process, however that dies. `filelock` does the same, but
what else is needed here depends on its version: earlier ones empty the file, which names who holds it, before they
have the lock, or follow a link at its place; and where a file system has no locks it takes a marker in their place,
which outlives a process that is killed.
"""

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from .in_place import is_ones_own, open_in_place

LOCK = ".lock"
_ATTEMPTS = 10


class RunInUseError(OSError):
    """Another process is at work in the folder."""


class RunLock:
    """Keeps other runs out of a run directory until the block ends or the process does, however it does.

    The lock is on a file that stays behind, empty of meaning, when nobody holds it. Of a run with several processes
    only the first takes it.
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
            OSError: the lock file cannot be made, or something else lies at its place.
        """
        try:
            self._descriptor = _take(run_dir / LOCK, run_dir, "start no second run in it")
        except _HeldError as held:
            raise RunInUseError(f"{run_dir} is in use: {held} {doing}") from None
        self.run_dir = run_dir


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the block no other process is in one of the same file, which is made and stays; waits until it may begin.

    Raises:
        OSError: the file cannot be made, or something else lies at its place.
    """
    descriptor = _take(path, path.parent, "start nothing else there meanwhile", wait=True)
    try:
        yield
    finally:
        os.close(descriptor)


class _HeldError(Exception):
    """Another one has the lock, and this is who."""


def _take(path: Path, what: Path, beware: str, *, wait: bool = False) -> int:
    """Lock a file, which is made if there is none, and write into it who has it; returns its descriptor.

    Args:
        path: the file.
        what: is locked with it, for warnings.
        beware: what to keep in mind where it cannot be.
        wait: until it is free.

    Raises:
        _HeldError: another one has it, unless `wait`.
        OSError: the file cannot be made, or something else lies at its place.
    """
    for last in (False,) * (_ATTEMPTS - 1) + (True,):
        descriptor = open_in_place(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                holder = os.read(descriptor, 1000).decode(errors="replace").strip()
                raise _HeldError(holder or "another process") from None
            except OSError as error:
                warnings.warn(f"{what} cannot be locked ({error}): {beware}", stacklevel=3)
            # Who did not begin may have removed the file between the two calls: the next one makes another.
            certain = _is_file(path, descriptor)
            if certain or last:
                if not certain:  # a file system whose files have no lasting numbers
                    warnings.warn(f"{what} cannot be locked for certain: {beware}", stacklevel=3)
                if is_ones_own(descriptor):
                    with suppress(OSError):  # who holds it is a courtesy: a full disk has no room for it
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise AssertionError("the last attempt returns")


def _is_file(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that lies at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
