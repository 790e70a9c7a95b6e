"""Files that another process reads and checks, ahead of their use, into memory that both processes see.

What is handed on is what was checked: bytes that DALI's decoder can parse, or that are marked as doubtful. Images of
many pixels are handed on at a smaller size. A process costs the trainer's interpreter nothing, which reading and
checking thousands of small files a second would.
"""

import marshal
import mmap
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amcl_fast.data.locations import absolute
from amcl_fast.data.processes.worker import Worker, WorkerError
from amcl_fast.data.reading.reduction import Reduction
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits

_ATTEMPTS = 3


@dataclass
class Encoded:
    """Encoded images.

    Attributes:
        images: one (bytes,) uint8 array a file, empty for a bad one, encoded anew where it was reduced. Those that
            were taken are valid until the next ones are requested.
        bad: place in the list to the reason.
        doubtful: places of those that DALI may be unable to parse.
    """

    images: list[np.ndarray]
    bad: dict[int, str]
    doubtful: list[int]


class Reader:
    """Reads lists of files, given by their locations, in the order in which they are requested."""

    def __init__(
        self,
        ahead: int = 2,
        *,
        reduction: Reduction | None = None,
        threads: int = 1,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Make a reader; its process starts with the first request.

        Args:
            ahead: lists of files that are read before they are wanted.
            reduction: which images are reduced, and how far; None: none are.
            threads: how many of them at once.
            limits: what is too large to be read at all.
        """
        self.ahead = ahead
        self._reduction, self._threads, self._limits = reduction, threads, limits
        # Those ahead, the one in use, and one that is wanted out of turn.
        self._memories = [_Memory(os.memfd_create("amcl-fast", os.MFD_CLOEXEC)) for _ in range(ahead + 2)]
        self._free = deque(range(len(self._memories)))
        self._asked: deque[tuple[int, list[str], list[str]]] = deque()
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._in_use: list[int] = []
        self._worker: Worker | None = None

    def request(self, files: list[str], coming: Sequence[str] = ()) -> None:
        """Have files read; at most `ahead` lists can wait to be taken.

        Args:
            files: their locations.
            coming: of members of tars that will be wanted, and that the system may read in the meantime.
        """
        # The process does not follow when this one changes its folder.
        files = [absolute(location) for location in files]
        self._asked.append((self._free.popleft(), files, [absolute(location) for location in coming]))
        if self._worker is not None:
            try:
                self._worker.send(_message(*self._asked[-1]))
            except WorkerError:  # it is started again, with all requests, when the answer is wanted
                self._worker = None

    def take(self) -> Encoded:
        """The oldest list that was requested.

        Raises:
            OSError: the process that reads cannot be started, or does not stay.
        """
        if not self._arrived:
            self._arrive()
        self._free.extend(self._in_use)
        slot, answer = self._arrived.popleft()
        self._in_use = [slot]
        return self._memories[slot].encoded(answer)

    def read(self, files: list[str]) -> Encoded:
        """Read files at once, before what is pending. The images are copies."""
        self.request(files)
        while self._asked:
            self._arrive()
        slot, answer = self._arrived.pop()
        encoded = self._memories[slot].encoded(answer)
        encoded.images = [image.copy() for image in encoded.images]
        self._free.append(slot)
        return encoded

    def close(self) -> None:
        """End the process and forget what is pending."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None
        self._free = deque(range(len(self._memories)))
        self._asked.clear()
        self._arrived.clear()
        self._in_use = []

    def _arrive(self) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                if self._worker is None:
                    # Should an image be what ends it, the last attempt decodes none.
                    self._worker = self._start(self._threads if attempt < _ATTEMPTS - 1 else 0)
                    for asked in self._asked:
                        self._worker.send(_message(*asked))
                answer = self._worker.receive()
                if attempt == _ATTEMPTS - 1:  # the images of the next list are decoded again
                    self._worker.close()
                    self._worker = None
                break
            except WorkerError as error:
                self._worker = None
                if attempt == _ATTEMPTS - 1:
                    raise OSError(f"the process that reads images does not stay: {error}") from None
        self._arrived.append((self._asked.popleft()[0], answer))

    def _start(self, threads: int) -> Worker:
        descriptors = [memory.descriptor for memory in self._memories]
        above, shorter = self._reduction or ("", "")
        arguments = [str(a) for a in (*self._limits, threads, above, shorter, *descriptors)]
        return Worker("reading.reader_process", arguments, descriptors)


class _Memory:
    """A growing piece of memory that two processes share."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None
        self._size = 0

    def __del__(self) -> None:
        os.close(self.descriptor)

    def encoded(self, answer: bytes) -> Encoded:
        """What the other process put here: the images, and at the end what there is to say of them."""
        start, end = marshal.loads(answer)
        if end > self._size:
            self._size = os.fstat(self.descriptor).st_size
            self._map = mmap.mmap(self.descriptor, self._size, prot=mmap.PROT_READ)
        assert self._map is not None
        starts, lengths, bad, doubtful = marshal.loads(self._map[start:end])
        whole = np.frombuffer(self._map, np.uint8, start)
        images = [whole[first : first + length] for first, length in zip(starts, lengths, strict=True)]
        return Encoded(images, bad, doubtful)


def _message(slot: int, files: Sequence[str], coming: Sequence[str]) -> bytes:
    return marshal.dumps((slot, *([os.fsencode(path) for path in paths] for paths in (files, coming))))
