"""The process of a `Reader`: it opens regular files only, reads and checks them. It imports neither torch nor numpy."""

import errno
import marshal
import mmap
import os
import resource
import time

from amcl_fast.data.headers import BadImage, Look, look, open_image, unreadable
from amcl_fast.data.worker import serve

_PAGE = 1 << 20
_ATTEMPTS = 3
# Of a network folder, say; the others tell of the file.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN, errno.ENFILE, errno.EMFILE}


class _Shelf:
    """Memory that is shared with a `Reader`, and grows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size  # of an earlier process
        self._map = mmap.mmap(descriptor, self._size) if self._size else mmap.mmap(-1, 1)
        self._view = memoryview(self._map)

    def write(self, at: int, content: bytes) -> tuple[int, int]:
        """Write `content` to `at`; returns where it starts and ends."""
        end = at + len(content)
        self._reserve(end)
        self._map[at:end] = content
        return at, end

    def read(self, path: bytes, at: int) -> tuple[int, Look]:
        """Read a file to `at`; returns its length and what it looks like.

        Raises:
            BadImage: it cannot be read, or is no usable image.
        """
        for attempt in range(_ATTEMPTS):
            try:
                length = self._read_once(path, at)
                break
            except OSError as error:
                if error.errno not in _PASSING or attempt == _ATTEMPTS - 1:
                    raise unreadable(path, error) from None
                time.sleep(0.1)
        end, content = at + length, self._map
        return length, look(lambda start, count: content[at + start : min(at + start + count, end)], length)

    def _read_once(self, path: bytes, at: int) -> int:
        descriptor, size = open_image(path)
        try:
            self._reserve(at + size)
            done = 0
            while done < size and (count := os.readv(descriptor, [self._view[at + done : at + size]])):
                done += count
            return done
        finally:
            os.close(descriptor)

    def _reserve(self, size: int) -> None:
        if size > self._size:
            self._size = (max(size, 3 * self._size // 2) // _PAGE + 1) * _PAGE
            os.ftruncate(self._descriptor, self._size)
            self._map = mmap.mmap(self._descriptor, self._size)
            self._view = memoryview(self._map)


def main(descriptors: list[str]) -> None:
    """Serve a `Reader`."""
    # `ulimit -f` counts the shared memory as a file; a limit on files is not meant for it.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    shelves = [_Shelf(int(descriptor)) for descriptor in descriptors]

    def answer(request: bytes) -> bytes:
        slot, files = marshal.loads(request)
        shelf = shelves[slot]
        lengths, doubtful, bad, at = [], [], {}, 0
        for place, path in enumerate(files):
            length = 0
            try:
                length, looks = shelf.read(path, at)
                if looks is Look.UNKNOWN:
                    doubtful.append(place)
            except BadImage as problem:
                length, bad[place] = 0, str(problem)
            lengths.append(length)
            at += length
        # Whatever its size, an answer fits into the pipe: two processes that wait for each other to read would hang.
        return marshal.dumps(shelf.write(at, marshal.dumps((lengths, bad, doubtful))))

    serve(answer)
