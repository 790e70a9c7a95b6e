"""Members of tars, read where they lie. Neither torch nor numpy is imported here."""

import os
import resource
import stat
from collections import OrderedDict
from collections.abc import Callable

from amcl_fast.data.headers import BadImage, check_size
from amcl_fast.data.tar import BLOCK, TarError, header

_MOST_OPEN = 1024
CHANGED = "the tar has changed: it is not where it was"


class OpenShards:
    """Tars that stay open after the first use, those that were used last."""

    def __init__(self) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = _MOST_OPEN if soft == resource.RLIM_INFINITY else max(min(_MOST_OPEN, soft // 2), 1)
        self._descriptors: OrderedDict[bytes, int] = OrderedDict()

    def read(self, location: bytes, room: Callable[[int], memoryview]) -> int:
        """Read a member of a tar by its location; returns how many bytes there were.

        Args:
            location: as in `locations`.
            room: makes room for so many bytes.

        Raises:
            BadImage: it is not there any more, or too large.
            OSError: the tar cannot be opened or read.
        """
        shard, offset, length, _ = location.split(b"\0", 3)
        at, size = int(offset), check_size(int(length))
        before, content, done = bytearray(BLOCK), room(size), 0
        try:
            descriptor = self._open(shard)
            # The header comes along: it alone tells that what lies here is still what was found here.
            while done < BLOCK + size:
                into = [memoryview(before)[done:], content] if done < BLOCK else [content[done - BLOCK :]]
                count = os.preadv(descriptor, into, at - BLOCK + done)
                if not count:
                    break
                done += count
        except OSError:
            self._close(shard)
            raise
        try:
            if header(bytes(before))[0] != size:
                raise BadImage(CHANGED)
        except TarError:
            raise BadImage(CHANGED if done >= BLOCK else "truncated: the tar ends before it") from None
        if done < BLOCK + size:
            raise BadImage("truncated: the tar ends within it")
        return size

    def _open(self, shard: bytes) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        while len(self._descriptors) >= self._most:
            os.close(self._descriptors.popitem(last=False)[1])
        # Should a FIFO have taken its place, nobody waits for it.
        descriptor = os.open(shard, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BadImage("its tar is not a regular file")
        self._descriptors[shard] = descriptor
        return descriptor

    def _close(self, shard: bytes) -> None:
        if (descriptor := self._descriptors.pop(shard, None)) is not None:
            os.close(descriptor)
