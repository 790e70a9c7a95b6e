"""What a scan asks the file system: the stamp of each file, and a look at those whose stamp has changed.

It imports neither torch nor numpy: it is the program of the processes that share a large scan.
"""

import marshal
import os
import time
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from amcl_fast.data.processes.serving import serve_jobs
from amcl_fast.data.scan.headers import UNREADABLE, BadImage, Look, look_at
from amcl_fast.data.scan.limits import Limits

NO_STAMP = -1
"""Size of a file of which no verdict is kept, and of one that is not known."""
NOT_UTF8 = "its name is not valid UTF-8"

# Files after which it is known whether the interpreter or the disk is the limit.
_TRIED = 32
_WAITING = 3  # times its processor time that a file takes where it is the disk
_THREADS = 16
_POSITIVE = (1 << 63) - 1


class Folder(NamedTuple):
    """Files of a folder.

    Attributes:
        prefix: the folder's path and "/", bytes.
        names: of the files, as bytes, each followed by a NUL.
        sizes, times: bytes of int64, a file each: what is known of it, `NO_STAMP` for nothing.
    """

    prefix: bytes
    names: bytes
    sizes: bytes
    times: bytes


class Checked(NamedTuple):
    """The same, as they are now.

    Attributes:
        sizes, times: bytes of int64, a file each, in bytes and ns; `NO_STAMP` where no verdict may be kept.
        pixels: bytes of int64, a file each: of those that have changed and are not bad; 0 where it is not known.
        good: places of files that have changed and are good.
        doubtful: of those that have changed and only decoding can tell.
        bad: (place, why it cannot be used) of the others that have changed.
    """

    sizes: bytes
    times: bytes
    pixels: bytes
    good: list[int]
    doubtful: list[int]
    bad: list[tuple[int, str]]


def job(folders: Iterable[Folder], limits: Limits) -> bytes:
    """A job for `answer`."""
    return marshal.dumps((tuple(limits), [tuple(folder) for folder in folders]))


def checked(answer: bytes) -> list[Checked]:
    """The answer to a job, a folder each."""
    return [Checked(*parts) for parts in marshal.loads(answer)]


def answer(request: bytes) -> bytes:
    """Check the files of a job."""
    limits, asked = marshal.loads(request)
    folders = [_Check(Folder(*parts), Limits(*limits)) for parts in asked]
    files = [(folder, place) for folder in folders for place in range(len(folder.names))]

    def check(some: Sequence[tuple[_Check, int]]) -> None:
        for folder, place in some:
            folder.check(place)

    # Threads hide the latency of a network folder; on a local disk the interpreter is the limit, and they only cost.
    started, used = time.perf_counter(), time.thread_time()
    check(files[:_TRIED])
    rest = files[_TRIED:]
    if rest and time.perf_counter() - started > _WAITING * (time.thread_time() - used) + 1e-3:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(check, (rest[first::_THREADS] for first in range(_THREADS))))
    else:
        check(rest)
    return marshal.dumps([tuple(folder.outcome()) for folder in folders])


def main(arguments: list[str]) -> None:
    """Serve a `Pool`."""
    serve_jobs(answer)


class _Check:
    """The files of a folder while they are checked."""

    def __init__(self, folder: Folder, limits: Limits) -> None:
        self._limits = limits
        self._prefix = os.fsdecode(folder.prefix)
        self.names = os.fsdecode(folder.names).split("\0")[:-1]
        self._sizes, self._times = array("q", folder.sizes), array("q", folder.times)
        self._pixels = array("q", bytes(8 * len(self.names)))
        self._good: list[int] = []
        self._doubtful: list[int] = []
        self._bad: list[tuple[int, str]] = []

    def check(self, place: int) -> None:
        """Look at a file, unless it is as it was."""
        path = self._prefix + self.names[place]
        try:
            status = os.stat(path)
            size, changed = status.st_size, status.st_mtime_ns & _POSITIVE
        except OSError:
            size = changed = NO_STAMP
        if size == self._sizes[place] and changed == self._times[place] and size != NO_STAMP:
            return
        self._sizes[place], self._times[place] = size, changed
        try:
            path.encode()
            sight = look_at(path, self._limits)
            self._pixels[place] = sight.width * sight.height
            (self._good if sight.looks is Look.WHOLE else self._doubtful).append(place)
        except UnicodeEncodeError:
            self._bad.append((place, NOT_UTF8))
        except BadImage as problem:
            self._bad.append((place, str(problem)))
            if str(problem).startswith(UNREADABLE):
                self._sizes[place] = NO_STAMP  # as of all that may pass, no verdict is kept

    def outcome(self) -> Checked:
        """All of them."""
        stamps = self._sizes.tobytes(), self._times.tobytes()
        return Checked(*stamps, self._pixels.tobytes(), self._good, self._doubtful, self._bad)
