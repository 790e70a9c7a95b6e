"""One run at a time in a run directory."""

import fcntl
import os
import socket
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

NAME = ".lock"


class RunInUseError(OSError):
    """Another process is training in the run directory."""


class RunLock:
    """Keeps other runs out of a run directory until the block ends or the process does, however it does.

    The lock is the operating system's, on a file that stays behind, empty of meaning, when nobody holds it. Of a
    run with several processes only the first takes it.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def acquire(self, run_dir: Path) -> None:
        """Take the lock of `run_dir`, which exists. Where the file system has no locks: a warning.

        Raises:
            RunInUseError: another run has it.
            OSError: the lock file cannot be made.
        """
        self._file = (run_dir / NAME).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            raise RunInUseError(
                f"{run_dir} is in use: {holder} trains there, and two runs never share a folder"
            ) from None
        except OSError as error:
            warnings.warn(f"{run_dir} cannot be locked ({error}): start no second run in it", stacklevel=2)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
