"""The process of a `Reader`: it opens regular files only, reads and checks them, and reduces large images.

It imports neither torch nor numpy.
"""

import marshal
import mmap
import os
import resource
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from amcl_fast.data.processes.serving import serve
from amcl_fast.data.reading.contents import Contents
from amcl_fast.data.reading.reduction import AT_ONCE, Reduction, reduce
from amcl_fast.data.scan.headers import BadImage, Look, Sight, look
from amcl_fast.data.scan.limits import Limits
from amcl_fast.left_out import TOO_LARGE

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_PAGE = 1 << 20
_SPARE = 1 << 24  # bytes that a list may leave behind on its shelf


class _Shelf:
    """Memory that is shared with a `Reader`, and grows."""

    def __init__(self, descriptor: int, contents: Contents, limits: Limits) -> None:
        self._descriptor = descriptor
        self._contents, self._limits = contents, limits
        self._size = os.fstat(descriptor).st_size  # of an earlier process
        self._map = mmap.mmap(descriptor, self._size) if self._size else mmap.mmap(-1, 1)
        self._view = memoryview(self._map)
        self._used = self._size

    def write(self, at: int, content: bytes) -> tuple[int, int]:
        """Write `content` to `at`; returns where it starts and ends."""
        end = at + len(content)
        self._reserve(end)
        self._map[at:end] = content
        return at, end

    def content(self, at: int, length: int) -> bytes:
        """A copy of what stands here."""
        return self._map[at : at + length]

    def read(self, location: bytes, at: int) -> tuple[int, Sight]:
        """Read a file, or a member of a tar, to `at`; returns its length and what a look at it has found.

        Raises:
            BadImage: it cannot be read, or is no usable image.
        """
        length = self._contents.read(location, lambda size: self._room(at, size))
        end, content = at + length, self._map

        def within(start: int, count: int) -> bytes:
            return content[at + start : min(at + start + count, end)]

        return length, look(within, length, self._limits, at_hand=True)

    def trim(self, end: int) -> None:
        """Give back to the system what a larger list, or a larger image, has left beyond `end`."""
        if self._used > end + _SPARE:
            begin = -(-end // _PAGE) * _PAGE
            self._map.madvise(mmap.MADV_REMOVE, begin, self._size - begin)
            self._used = begin

    def _room(self, at: int, size: int) -> memoryview:
        self._reserve(at + size)
        return self._view[at : at + size]

    def _reserve(self, size: int) -> None:
        self._used = max(self._used, size)
        if size > self._size:
            self._size = (max(size, 3 * self._size // 2) // _PAGE + 1) * _PAGE
            os.ftruncate(self._descriptor, self._size)
            self._map = mmap.mmap(self._descriptor, self._size)
            self._view = memoryview(self._map)


class _Large(NamedTuple):
    """An image while it is made smaller: its place, what a look has found, pixels that are decoded, bytes."""

    place: int
    sight: Sight
    pixels: int
    content: bytes
    reduced: "Future[bytes]"


class _List:
    """The images of one list of files, as they come to stand on a shelf."""

    def __init__(
        self, shelf: _Shelf, count: int, reduction: Reduction | None, reducers: "_Reducers", limits: Limits
    ) -> None:
        self.starts, self.lengths = [0] * count, [0] * count
        self.bad: dict[int, str] = {}
        self.doubtful: list[int] = []
        self._shelf = shelf
        self._reduction, self._reducers, self._limits = reduction, reducers, limits
        self._at = 0
        self._large: deque[_Large] = deque()

    def read(self, place: int, path: bytes) -> None:
        try:
            length, sight = self._shelf.read(path, self._at)
        except BadImage as problem:
            self.bad[place] = str(problem)
            return
        factor = self._reduction.factor(sight.width, sight.height) if self._reduction else 1
        if self._reduction is None or (factor == 1 and length <= self._reduction.most_bytes):
            self._keep(place, length, sight.looks)
            return
        content = self._shelf.content(self._at, length)
        pixels = sight.width * sight.height // (factor**2 if sight.streams else 1)
        while self._large and not self._has_room(pixels, length):
            self._settle()
        self._large.append(_Large(place, sight, pixels, content, self._reducers.submit(content, factor)))

    def _has_room(self, pixels: int, length: int) -> bool:
        """Whether one more large image may be in work."""
        return (
            len(self._large) < 2 * self._reducers.threads
            and pixels + sum(large.pixels for large in self._large) <= AT_ONCE * self._limits.pixels
            and length + sum(len(large.content) for large in self._large) <= AT_ONCE * self._limits.bytes
        )

    def _settle(self) -> None:
        """Wait for the first of the large images."""
        place, sight, _, content, future = self._large.popleft()
        reduced = future.result()
        if reduced is not content:
            # What has been written anew can be parsed. Damage of its pixels stays unsaid: Pillow tells nothing of it.
            self._shelf.write(self._at, reduced)
            self._keep(place, len(reduced), Look.WHOLE)
        elif self._reduction and (
            sight.width * sight.height > self._reduction.most_pixels or len(content) > self._reduction.most_bytes
        ):
            size = f"{sight.width} x {sight.height} pixels in {len(content):,} bytes"
            self.bad[place] = f"{TOO_LARGE}: {size}, and Pillow, which would make it smaller, cannot decode it"
        else:
            self._shelf.write(self._at, content)
            self._keep(place, len(content), sight.looks)

    def answer(self) -> bytes:
        while self._large:
            self._settle()
        found = marshal.dumps((self.starts, self.lengths, self.bad, self.doubtful))
        start, end = self._shelf.write(self._at, found)
        self._shelf.trim(end)
        # Whatever its size, an answer fits into the pipe: two processes that wait for each other to read would hang.
        return marshal.dumps((start, end))

    def _keep(self, place: int, length: int, looks: Look) -> None:
        self.starts[place], self.lengths[place] = self._at, length
        if looks is Look.UNKNOWN:
            self.doubtful.append(place)
        self._at += length


class _Reducers:
    """Threads that reduce large images, which most lists have none of: they are made, and imported, with the first."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, content: bytes, factor: int) -> "Future[bytes]":
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(max(self.threads, 1))
        return self._pool.submit(reduce if self.threads else _as_it_is, content, factor)


def _as_it_is(content: bytes, factor: int) -> bytes:
    return content


def main(arguments: list[str]) -> None:
    """Serve a `Reader`, with its settings and descriptors as arguments."""
    # `ulimit -f` counts the shared memory as a file; a limit on files is not meant for it.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    limits = Limits.of(arguments[:2])
    threads, above, shorter, *descriptors = arguments[2:]
    reduction = Reduction(int(above), float(shorter)) if above else None
    contents = Contents(limits)
    shelves = [_Shelf(int(descriptor), contents, limits) for descriptor in descriptors]
    reducers = _Reducers(int(threads))

    def answer(request: bytes) -> bytes:
        slot, files, coming = marshal.loads(request)
        for location in coming:
            contents.expect(location)
        images = _List(shelves[slot], len(files), reduction, reducers, limits)
        for place, path in enumerate(files):
            images.read(place, path)
        return images.answer()

    serve(answer)
