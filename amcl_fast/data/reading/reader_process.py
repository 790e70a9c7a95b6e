"""The process of a `Reader`: it opens regular files only, reads and checks them, and reduces large images.

It imports neither torch nor numpy.
"""

import marshal
import mmap
import os
import resource
from collections import deque
from typing import TYPE_CHECKING

from amcl_fast.data.processes.serving import serve
from amcl_fast.data.reading.contents import Contents
from amcl_fast.data.reading.reduction import Reduction, reduce
from amcl_fast.data.scan.headers import BadImage, Look, Sight, look

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_PAGE = 1 << 20


class _Shelf:
    """Memory that is shared with a `Reader`, and grows."""

    def __init__(self, descriptor: int, contents: Contents) -> None:
        self._descriptor = descriptor
        self._contents = contents
        self._size = os.fstat(descriptor).st_size  # of an earlier process
        self._map = mmap.mmap(descriptor, self._size) if self._size else mmap.mmap(-1, 1)
        self._view = memoryview(self._map)

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
        return length, look(lambda start, count: content[at + start : min(at + start + count, end)], length)

    def _room(self, at: int, size: int) -> memoryview:
        self._reserve(at + size)
        return self._view[at : at + size]

    def _reserve(self, size: int) -> None:
        if size > self._size:
            self._size = (max(size, 3 * self._size // 2) // _PAGE + 1) * _PAGE
            os.ftruncate(self._descriptor, self._size)
            self._map = mmap.mmap(self._descriptor, self._size)
            self._view = memoryview(self._map)


class _List:
    """The images of one list of files, as they come to stand on a shelf."""

    def __init__(self, shelf: _Shelf, count: int) -> None:
        self.starts, self.lengths = [0] * count, [0] * count
        self.bad: dict[int, str] = {}
        self.doubtful: list[int] = []
        self._shelf = shelf
        self._at = 0
        self._large: deque[tuple[int, Look, bytes, Future[bytes]]] = deque()

    def read(self, place: int, path: bytes, reduction: Reduction | None, reducers: "_Reducers") -> None:
        try:
            length, sight = self._shelf.read(path, self._at)
        except BadImage as problem:
            self.bad[place] = str(problem)
            return
        factor = reduction.factor(sight.width, sight.height) if reduction else 1
        if factor == 1:
            self._keep(place, length, sight.looks)
            return
        content = self._shelf.content(self._at, length)
        self._large.append((place, sight.looks, content, reducers.submit(content, factor)))

    def settle(self, most: int) -> None:
        """Wait until at most so many large images are in work."""
        while len(self._large) > most:
            place, looks, content, future = self._large.popleft()
            reduced = future.result()
            # What has been written anew can be parsed. Damage of its pixels stays unsaid: Pillow tells nothing of it.
            self._shelf.write(self._at, reduced)
            self._keep(place, len(reduced), looks if reduced is content else Look.WHOLE)

    def answer(self) -> bytes:
        found = marshal.dumps((self.starts, self.lengths, self.bad, self.doubtful))
        # Whatever its size, an answer fits into the pipe: two processes that wait for each other to read would hang.
        return marshal.dumps(self._shelf.write(self._at, found))

    def _keep(self, place: int, length: int, looks: Look) -> None:
        self.starts[place], self.lengths[place] = self._at, length
        if looks is Look.UNKNOWN:
            self.doubtful.append(place)
        self._at += length


class _Reducers:
    """Threads that reduce large images, which most lists have none of: they are made, and imported, with the first."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, content: bytes, factor: int) -> "Future[bytes]":
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self._threads)
        return self._pool.submit(reduce, content, factor)


def main(arguments: list[str]) -> None:
    """Serve a `Reader`, with its settings and descriptors as arguments."""
    # `ulimit -f` counts the shared memory as a file; a limit on files is not meant for it.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    threads, above, shorter, *descriptors = arguments
    reduction = Reduction(int(above), float(shorter)) if above else None
    contents = Contents()
    shelves = [_Shelf(int(descriptor), contents) for descriptor in descriptors]
    reducers = _Reducers(int(threads))

    def answer(request: bytes) -> bytes:
        slot, files, coming = marshal.loads(request)
        for location in coming:
            contents.expect(location)
        images = _List(shelves[slot], len(files))
        for place, path in enumerate(files):
            images.read(place, path, reduction, reducers)
            images.settle(2 * int(threads))
        images.settle(0)
        return images.answer()

    serve(answer)
