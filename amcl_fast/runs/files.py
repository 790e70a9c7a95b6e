"""Files that are either the old ones or the new ones, whatever happens while they are written; logs that can wait."""

import errno
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it; text is UTF-8.

    Raises:
        OSError: it cannot be written. What was there before is as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        # Names of files that are not valid UTF-8 come as surrogates.
        partial.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # the partial one is no concern of the caller
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_output(path: Path) -> None:
    """Raise OSError, in one line, if no file can be written there; before the work whose result it will hold."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of the file as well")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no regular file, and would be replaced by one")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: {path.parent} is not writable")


def named(error: OSError, path: Path) -> OSError:
    """The error with the file that it is of, which that of a write lacks."""
    if error.filename is None:
        error.filename = str(path)
    return error


def is_full(error: OSError) -> bool:
    """Whether there was no room for what was written."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file, which is made if there is none, all of the content or nothing.

    Raises:
        OSError: it cannot be written. The file ends where it did.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        end = os.fstat(descriptor).st_size
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(descriptor, end)
            raise named(error, path) from None
    finally:
        os.close(descriptor)


def flush_to_disk(path: Path) -> None:
    """Have the system write a file, or the entries of a folder, to the disk now.

    Raises:
        OSError: it cannot be.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Unwritten:
    """Writes that may wait: one that fails is tried again later. For what is no reason to end a run, such as logs.

    Each outage is one warning a file, however long it lasts.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[], object]] = {}
        self._told: set[str] = set()

    def write(self, name: str, write: Callable[[], object]) -> None:
        """Try `write`, which raises OSError if it cannot, and what waits; `name` is for the warning."""
        self._waiting[name] = write
        self.retry()

    def retry(self) -> None:
        """Try again what waits."""
        for name, write in list(self._waiting.items()):
            try:
                write()
            except OSError as error:
                if name not in self._told:
                    self._told.add(name)
                    warnings.warn(
                        f"{name} cannot be written ({error}); training goes on, and it is tried again", stacklevel=2
                    )
            else:
                del self._waiting[name]
                self._told.discard(name)
