"""Files that are written where they lie, such as logs and locks, and the folders of a run: no link leads elsewhere.

A run directory, a study or a shared cache may come from somebody else, and whatever lies there under a name that is
written may be a link, a FIFO, or a second name of a file that is somebody's own. The folder that a user names may be a
link itself; what is below it is written there and nowhere else. Who may write into the folder meanwhile is trusted.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import left_for, named, partial_name, write_file


class PlaceError(OSError):
    """Something lies where a file or a folder of ours is to be, and nothing is written through it."""

    def __str__(self) -> str:
        return str(self.strerror)


def _in_the_way(path: Path, what: str) -> PlaceError:
    return PlaceError(errno.ELOOP, f"{path} is {what}, and nothing is written through it: remove it", str(path))


def refuse_links(*paths: Path) -> None:
    """Raise PlaceError, in one line, if one of these is a link; before the work whose results are to lie there."""
    for path in paths:
        if path.is_symlink():
            raise _in_the_way(path, f"a link to {os.readlink(path)}")


def make_within(folder: Path, path: Path) -> Path:
    """Make a folder below one that is there, unless it is there itself, and those between; returns it.

    Raises:
        PlaceError: one of them, other than `folder`, is a link.
        OSError: one cannot be made.
    """
    here = folder
    for name in path.relative_to(folder).parts:
        here /= name
        refuse_links(here)
        here.mkdir(exist_ok=True)
    return path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder under a name that nobody can foretell, which takes its place when the block ends without an error.

    What processes that were killed have left for the same place is removed first: one at a time makes it.

    Raises:
        PlaceError: a link lies at its place.
        OSError: it cannot be made.
    """
    refuse_links(path)
    for left in left_for(path):
        shutil.rmtree(left, ignore_errors=True)  # what a link leads to is not
    partial = partial_name(path)
    partial.mkdir()
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def open_in_place(path: Path) -> int:
    """Open a file to read and write it where it lies, which is made if there is none; returns its descriptor.

    Raises:
        PlaceError: a link lies there, or no regular file.
        OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            refuse_links(path)
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _in_the_way(path, "no regular file")
    return descriptor


def is_ones_own(descriptor: int) -> bool:
    """Whether an open file has no second name, under which it may be of somebody else, or a backup."""
    return os.fstat(descriptor).st_nlink < 2


def append_whole(path: Path, content: bytes, *, instead_of: int = 0) -> None:
    """Append to a file, which is made if there is none, all of the content or nothing.

    A file that has a second name stays as it is under that: here another one takes its place.

    Args:
        path: of a file that nobody else writes.
        content: what it will end with.
        instead_of: so many of its last bytes are replaced, in one write where the system can.

    Raises:
        PlaceError: a link lies there, or no regular file.
        OSError: it cannot be written. The file ends as it did.
    """
    descriptor = open_in_place(path)
    try:
        end = os.fstat(descriptor).st_size
        begin = max(end - instead_of, 0)
        if not is_ones_own(descriptor):
            write_file(path, os.pread(descriptor, begin, 0) + content)
            return
        before = os.pread(descriptor, end - begin, begin)
        try:
            _write_at(descriptor, content, begin)
            if begin + len(content) < end:
                os.ftruncate(descriptor, begin + len(content))
        except OSError as error:
            with suppress(OSError):
                _write_at(descriptor, before, begin)
                os.ftruncate(descriptor, end)
            raise named(error, path) from None
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, content: bytes, begin: int) -> None:
    rest = memoryview(content)
    while rest:
        count = os.pwrite(descriptor, rest, begin)
        rest, begin = rest[count:], begin + count
