"""Files that are either the old ones or the new ones, whatever happens while they are written; logs that can wait."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

PARTIAL = ".partial"
"""How the name of a file ends that is not whole yet, or never will be since its writer was killed."""

_TOKEN = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")

Content = str | bytes | Iterable[bytes | memoryview] | Callable[[BinaryIO], object]


class NewFile:
    """A file under a name of its own, which takes its place when it is whole.

    That name nobody can foretell, and what has it already is an error: no link that lies about is followed. A link
    at the place itself is replaced, and what it leads to stays as it is. As a context manager it gives `file`,
    and the file is whole when the block ends without an error. Files that writers which were killed have left for
    the same place are removed first: a lock, which dies with its process, tells them from those of others at work.

    Args:
        path: its place, in a folder that is there.
        durable: write it to the disk as well, so that it is whole after a power cut too.
        replace: what is at the place already; else that stays, also where another process writes it meanwhile.

    Attributes:
        file: to write to.

    Raises:
        OSError: it cannot be made; of `path`, as all that is raised later.
    """

    def __init__(self, path: Path, *, durable: bool = False, replace: bool = True) -> None:
        self.path, self._durable, self._replace = path, durable, replace
        _remove_left(path)
        self._partial, self._lock = partial_name(path), -1
        with self._named():
            descriptor = _locked_new(self._partial)
            self.file: BinaryIO = open(self._partial, "wb", opener=lambda *_: descriptor)  # noqa: SIM115  # with its name
            try:
                self._lock = os.dup(descriptor)
            except OSError:
                self.give_up()
                raise

    def __enter__(self) -> BinaryIO:
        return self.file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        self.give_up()
        with self._named():
            if isinstance(error, OSError):
                raise error

    def write(self, content: bytes) -> None:
        """Write to the file; an OSError names its place."""
        with self._named():
            self.file.write(content)

    def finish(self) -> None:
        """Give the file its place.

        Raises:
            OSError: it cannot be written. What was there before is as it was.
        """
        try:
            with self._named():
                if self._durable:
                    self.file.flush()
                    os.fsync(self.file.fileno())
                self.file.close()
                if self._replace or not self._linked():
                    os.replace(self._partial, self.path)
                self._release()  # not before it has its place: somebody would take it for one that was left
                if self._durable:
                    flush_to_disk(self.path.parent)
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Remove what was written."""
        with suppress(OSError):  # of a full disk, once more
            self.file.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)
        with suppress(OSError):
            self._release()

    def _release(self) -> None:
        """Let go of the lock."""
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            os.close(lock)

    def _linked(self) -> bool:
        """Give the file its place unless that is taken; whether the file system has hard links."""
        try:
            os.link(self._partial, self.path)
        except FileExistsError:
            pass
        except OSError:
            return False
        self._partial.unlink()
        return True

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the block are of the file's place: the name that it has meanwhile is no concern of the caller."""
        try:
            yield
        except OSError as error:
            raise of_place(error, self._partial, self.path) from None


def write_file(path: Path, content: Content, *, durable: bool = False, replace: bool = True) -> None:
    """Write a file beside its place and rename it: whatever happens, there is the old one or the new one, whole.

    Args:
        path: its place, in a folder that is there; a link there is replaced, not followed.
        content: text, which becomes UTF-8, bytes, pieces of bytes, or what writes it to an open file.
        durable, replace: see `NewFile`.

    Raises:
        OSError: it cannot be written. What was there before is as it was.
    """
    with NewFile(path, durable=durable, replace=replace) as file:
        if callable(content):
            content(file)
        elif isinstance(content, str):
            # Names of files that are not valid UTF-8 come as surrogates.
            file.write(content.encode(errors="surrogateescape"))
        elif isinstance(content, bytes):
            file.write(content)
        else:
            file.writelines(content)


def copy_file(source: Path, path: Path, *, link: bool = False) -> None:
    """Have the content of a file at another place too, in the same way.

    Args:
        source: a file that is replaced, not changed, if `link`.
        path: as that of `write_file`.
        link: a second name is enough, if the file system has such.

    Raises:
        OSError: it cannot be read or written. What was there before is as it was.
    """
    if link:
        _remove_left(path)
        partial = partial_name(path)
        with suppress(OSError):
            os.link(source, partial)
            try:
                os.replace(partial, path)
                return
            finally:
                partial.unlink(missing_ok=True)  # two names of one file are not renamed to each other
    with source.open("rb") as file:
        write_file(path, lambda new: shutil.copyfileobj(file, new), durable=True)


def partial_name(path: Path) -> Path:
    """A new name for what will be `path`, in the same folder."""
    return path.with_name(f"{_stem(path)}.{secrets.token_hex(8)}{PARTIAL}")


def _locked_new(path: Path) -> int:
    """Make a file under a new name, locked as long as it is open; returns its descriptor.

    Raises:
        OSError: it cannot be made, or something lies there.
    """
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # where a file system has no locks nobody gets one, and nothing is removed
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.lexists(path):
            return descriptor
        os.close(descriptor)  # somebody has taken it, not yet locked, for one that was left


def _remove_left(path: Path) -> None:
    """Remove what writers that were killed have left for a place, and links at such names."""
    for left in left_for(path):
        _remove_unlocked(left)


def left_for(path: Path) -> list[Path]:
    """What writers that were killed, or are at work, have left for a place."""
    left = re.compile(re.escape(_stem(path)) + _TOKEN.pattern)
    with suppress(OSError), os.scandir(path.parent) as found:
        return [path.with_name(entry.name) for entry in found if left.fullmatch(entry.name)]
    return []


def _remove_unlocked(path: Path) -> None:
    """Remove a regular file that nobody has locked, or a link."""
    try:
        # For writing, as NFS locks nothing else; not blocking, as a FIFO would wait for a reader.
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            with suppress(OSError):
                path.unlink()
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                path.unlink()
    finally:
        os.close(descriptor)


def _stem(path: Path) -> str:
    """How the names of what will be `path` begin, or of what will have such a name before it has its place."""
    return _TOKEN.split(path.name)[0][:50]


def move_into_place(partial: Path, path: Path) -> None:
    """Give a whole file, which others have written, its place, on the disk as well.

    Raises:
        OSError: it cannot be moved.
    """
    os.replace(partial, path)
    flush_to_disk(path.parent)


def of_place(error: OSError, partial: Path, path: Path) -> OSError:
    """An error of writing `partial` as one of writing `path`."""
    if error.errno is None or (error.filename is not None and str(error.filename) != str(partial)):
        return error
    return OSError(error.errno, error.strerror, str(path))


def remove_partial(*folders: Path) -> None:
    """Remove what writers that were killed have left in folders in which nobody else writes now."""
    for folder in folders:
        for path in folder.glob(f"*{PARTIAL}"):
            if _TOKEN.search(path.name):  # of ours, and no download that somebody has not finished
                with suppress(OSError):
                    path.unlink()


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


def flush_to_disk(path: Path) -> None:
    """Have the system write a file, or the entries of a folder, to the disk now.

    Raises:
        OSError: it cannot be.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
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
        self._kept: list[tuple[Path, Path, Callable[[], object]]] = []

    def keep(self, path: Path, folder: Path, write: Callable[[], object]) -> None:
        """Write a file that is there anew where a retry finds that somebody has deleted it, but not the `folder`."""
        self._kept.append((path, folder, write))

    def write(self, name: str, write: Callable[[], object]) -> None:
        """Try `write`, which raises OSError if it cannot, and what waits; `name` is for the warning."""
        self._waiting[name] = write
        self.retry()

    def retry(self) -> None:
        """Try again what waits, and write what was deleted."""
        for path, folder, write in self._kept:
            if str(path) not in self._waiting and folder.is_dir() and not os.path.lexists(path):
                warnings.warn(f"{path} was deleted while the run went on; it is written anew", stacklevel=2)
                self._waiting[str(path)] = write
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
