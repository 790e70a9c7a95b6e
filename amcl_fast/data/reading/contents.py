"""The bytes at a location: of a file, or of a member of a tar, read where it lies.

Neither torch nor numpy is imported here.
"""

import errno
import os
import resource
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from amcl_fast.data.scan.headers import BadImage, check_size, open_image, unreadable
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.shards.tar import BLOCK, TarError, header, header_name

CHANGED = "the tar has changed: it is not where it was"
"""Why a member is not read of whose header nothing is left."""

_MOST_OPEN = 1024
_BEFORE = 8192  # bytes before a header, beside the name, in which what precedes it has room
_ATTEMPTS = 3
# Of a network folder, say; the others tell of the file.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN, errno.ENFILE, errno.EMFILE}


class Contents:
    """Reads what is at a location. Tars stay open after the first use, those that were used last."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        """Open nothing yet; what is above the limit of bytes is not read."""
        self._limits = limits
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = _MOST_OPEN if soft == resource.RLIM_INFINITY else max(min(_MOST_OPEN, soft // 2), 1)
        self._shards: OrderedDict[bytes, int] = OrderedDict()

    def read(self, location: bytes, room: Callable[[int], memoryview]) -> int:
        """Read a file or a member; returns how many bytes there were.

        Args:
            location: as in `locations`.
            room: makes room for so many bytes; called again if they have to be read again.

        Raises:
            BadImage: it is not there, cannot be read, is empty, too large or no regular file.
        """
        shard, nul, rest = location.partition(b"\0")
        for attempt in range(_ATTEMPTS):
            try:
                return self._read_member(shard, rest, room) if nul else _read_file(location, room, self._limits)
            except OSError as error:
                self._close(shard)
                if error.errno not in _PASSING or attempt == _ATTEMPTS - 1:
                    raise unreadable(shard, error) from None
                time.sleep(0.1)
        raise AssertionError

    def expect(self, location: bytes) -> None:
        """Have the system read a member that will be wanted; what is wrong with it shows when it is."""
        shard, _, rest = location.partition(b"\0")
        offset, length, _ = rest.split(b"\0", 2)
        with suppress(OSError, BadImage):
            os.posix_fadvise(self._open(shard), int(offset) - BLOCK, int(length) + BLOCK, os.POSIX_FADV_WILLNEED)

    def _read_member(self, shard: bytes, rest: bytes, room: Callable[[int], memoryview]) -> int:
        offset, length, name = rest.split(b"\0", 2)
        at, size = int(offset), check_size(int(length), self._limits)
        before, content, done = bytearray(BLOCK), room(size), 0
        descriptor = self._open(shard)
        # The header comes along: it alone tells that what lies here is still what was found here.
        while done < BLOCK + size:
            into = [memoryview(before)[done:], content] if done < BLOCK else [content[done - BLOCK :]]
            count = os.preadv(descriptor, into, at - BLOCK + done)
            if not count:
                break
            done += count
        block = bytes(before)
        try:
            same = header(block)[0] == size
            if same and header_name(block) != name:  # a long one stands before the header
                start = max(at - 2 * BLOCK - len(name) - _BEFORE, 0)
                same = name in os.pread(descriptor, at - BLOCK - start, start)
            if not same:
                raise BadImage(CHANGED)
        except TarError:
            raise BadImage(CHANGED if done >= BLOCK else "truncated: the tar ends before it") from None
        if done < BLOCK + size:
            raise BadImage("truncated: the tar ends within it")
        return size

    def _open(self, shard: bytes) -> int:
        if shard in self._shards:
            self._shards.move_to_end(shard)
            return self._shards[shard]
        while len(self._shards) >= self._most:
            os.close(self._shards.popitem(last=False)[1])
        # Should a FIFO have taken its place, nobody waits for it.
        descriptor = os.open(shard, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BadImage("its tar is not a regular file")
        self._shards[shard] = descriptor
        return descriptor

    def _close(self, shard: bytes) -> None:
        if (descriptor := self._shards.pop(shard, None)) is not None:
            os.close(descriptor)


def _read_file(path: bytes, room: Callable[[int], memoryview], limits: Limits) -> int:
    descriptor, size = open_image(path, limits)
    try:
        content, done = room(size), 0
        while done < size and (count := os.readv(descriptor, [content[done:]])):
            done += count
        return done
    finally:
        os.close(descriptor)
